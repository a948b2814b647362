"""The table of reference losses: right, whole or absent, the same whatever interrupts it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file

from preceptor import SelectionClient
from preceptor.errors import InvalidWeightsError
from preceptor.weights import SafetensorsFile
from preceptor_service.app import start_service
from preceptor_service.loss_identity import digest_of, loss_identity
from preceptor_service.losses_file import METADATA
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.reference.durable import locked
from preceptor_service.reference.errors import JobError
from preceptor_service.reference.losses_job import build_losses, score_here
from preceptor_service.reference.losses_table import read_metadata
from preceptor_service.reference.part_scorer import Layout, Part, Reference, Scoring, read_reference
from tests.naive.losses import small_cnn_losses
from tests.naive.text import language_losses
from tests.reference.examples import IMAGES, PAIRS, TEXTS, arrays, write
from tests.service import digits
from tests.service.conftest import config

ROWS = 40
WEIGHTS = digits.weights(7)
SCORING = Scoring(micro_batch_rows=16, device="cpu", threads=1, architectures={})


@pytest.fixture
def reference(tmp_path: Path) -> Reference:
    save_file(WEIGHTS, tmp_path / "weights.safetensors")
    return read_reference(
        tmp_path / "weights.safetensors", IMAGES.task, IMAGES.name, IMAGES.config, ArchitectureRegistry()
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two files with several row groups each; ids in no order."""
    folder = tmp_path / "data"
    folder.mkdir()
    examples, ids = arrays(IMAGES, ROWS), ids_of(ROWS)
    for name, rows in (("a", slice(0, 25)), ("b", slice(25, ROWS))):
        write(folder / f"{name}.parquet", {key: value[rows] for key, value in examples.items()}, example_id=ids[rows])
    return folder


def ids_of(rows: int) -> Any:
    return np.random.default_rng(3).permutation(1000)[:rows]


def build(reference: Reference, data: Path, path: Path, **settings: Any) -> dict[str, Any] | None:
    return build_losses(
        **{
            "reference": reference,
            "data": [data],
            "layout": Layout("example_id", {}),
            "scoring": SCORING,
            "part_rows": 8,
            "path": path,
            "scorers": score_here,
            "is_stopped": lambda: False,
            "watch": lambda done, total: None,
            **settings,
        }
    )


def losses_in(path: Path) -> dict[Any, float]:
    table = pq.read_table(path)
    return dict(zip(table["example_id"].to_pylist(), table["reference_loss"].to_pylist(), strict=True))


def test_every_example_has_the_loss_that_a_plain_loop_gives_it(
    reference: Reference, data: Path, tmp_path: Path
) -> None:
    metadata = build(reference, data, tmp_path / "losses.parquet")

    examples = arrays(IMAGES, ROWS)
    expected = dict(
        zip(ids_of(ROWS).tolist(), small_cnn_losses(WEIGHTS, examples["image"], examples["label"]), strict=True)
    )
    found = losses_in(tmp_path / "losses.parquet")
    assert list(found) == sorted(expected)
    assert found == pytest.approx(expected, rel=1e-5)
    assert metadata is not None
    assert metadata == read_metadata(tmp_path / "losses.parquet")
    assert (metadata["rows"], metadata["rows_without_loss"]) == (ROWS, 0)
    assert metadata["mean_loss"] == pytest.approx(np.mean(list(expected.values())), rel=1e-5)
    assert [path.name for path in tmp_path.glob("losses*")] == ["losses.parquet"]


def test_text_ids_and_other_column_names_do_as_well(reference: Reference, tmp_path: Path) -> None:
    examples, names = arrays(IMAGES, 9), [f"image-{number}" for number in (5, 3, 8, 1, 9, 2, 7, 4, 6)]
    file = write(tmp_path / "d.parquet", {"pixels": examples["image"], "label": examples["label"]}, key=names)

    build(reference, file, tmp_path / "losses.parquet", layout=Layout("key", {"image": "pixels"}))

    expected = dict(zip(names, small_cnn_losses(WEIGHTS, examples["image"], examples["label"]), strict=True))
    assert losses_in(tmp_path / "losses.parquet") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("model", [PAIRS, TEXTS], ids=["pairs", "texts"])
def test_what_has_no_loss_is_nan_and_counted(model: Any, tmp_path: Path) -> None:
    examples = arrays(model, 12)
    examples["attention_mask"][[2, 9]] = 0
    module = ArchitectureRegistry().build(model.name, model.config, seed=1)
    save_file({name: tensor.clone() for name, tensor in module.state_dict().items()}, tmp_path / "w.safetensors")
    reference = read_reference(tmp_path / "w.safetensors", model.task, model.name, model.config, ArchitectureRegistry())
    file = write(tmp_path / "d.parquet", examples, example_id=list(range(12)))

    metadata = build(reference, file, tmp_path / "losses.parquet")

    found = np.array(list(losses_in(tmp_path / "losses.parquet").values()))
    assert metadata is not None
    assert metadata["rows_without_loss"] == 2
    assert np.flatnonzero(np.isnan(found)).tolist() == [2, 9]
    if model is TEXTS:
        inner = module.eval()
        expected = language_losses(
            lambda tokens: inner(input_ids=tokens, attention_mask=tokens.new_ones(tokens.shape)), examples
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_losses_are_those_of_live_scoring(reference: Reference, data: Path, tmp_path: Path) -> None:
    build(reference, data, tmp_path / "losses.parquet")
    table = losses_in(tmp_path / "losses.parquet")
    examples, ids = arrays(IMAGES, ROWS), ids_of(ROWS)
    service = start_service(config(tmp_path / "store", scorer={"micro_batch_rows": 16, "threads": 1}))
    try:
        with SelectionClient(f"127.0.0.1:{service.ports.grpc}") as client:
            run = client.create_run(digits.spec("live", score="easy_reference"))
            assert run.push_reference(WEIGHTS).digest == reference.digest
            # The rows of the table's first micro-batch, as they were; then all in another order.
            first = run.score({name: values[:14] for name, values in examples.items()}).reference_losses
            order = np.random.default_rng(0).permutation(ROWS)
            shuffled = run.score({name: values[order] for name, values in examples.items()}).reference_losses
    finally:
        service.stop()

    assert first is not None
    assert shuffled is not None
    assert first.tolist() == [table[number] for number in ids[:14].tolist()]
    np.testing.assert_allclose(shuffled, [table[number] for number in ids[order].tolist()], rtol=1e-5, atol=1e-6)


class Stopping:
    """Says stop after so many parts."""

    def __init__(self, parts: int) -> None:
        self._left = parts

    def __call__(self) -> bool:
        self._left -= 1
        return self._left == 0


class Counting:
    """Scores here, and remembers which parts."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.scored: list[int] = []
        self._dies_after = dies_after

    def __call__(
        self, reference: Reference, layout: Layout, scoring: Scoring, parts: Sequence[Part]
    ) -> Iterator[tuple[int, pa.Table]]:
        for number, table in score_here(reference, layout, scoring, parts):
            if self._dies_after == len(self.scored):
                raise RuntimeError("out of power")
            self.scored.append(number)
            yield number, table


def test_a_job_that_was_stopped_scores_what_is_left_and_writes_the_same_table(
    reference: Reference, data: Path, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole.parquet", tmp_path / "stopped.parquet"
    counting, reported = Counting(), []
    build(reference, data, whole, scorers=counting)
    assert sorted(counting.scored) == list(range(len(counting.scored)))

    first, second, last = Counting(), Counting(dies_after=1), Counting()
    assert build(reference, data, stopped, scorers=first, is_stopped=Stopping(2)) is None
    assert not stopped.exists()
    with pytest.raises(RuntimeError, match="out of power"):
        build(reference, data, stopped, scorers=second)
    assert not stopped.exists()
    build(reference, data, stopped, scorers=last, watch=lambda done, total: reported.append((done, total)))

    assert (len(first.scored), len(second.scored)) == (2, 1)
    assert sorted(first.scored + second.scored + last.scored) == sorted(counting.scored)
    assert reported[-1] == (ROWS, ROWS)
    assert stopped.read_bytes() == whole.read_bytes()


def test_a_finished_table_is_not_built_again(reference: Reference, data: Path, tmp_path: Path) -> None:
    metadata = build(reference, data, tmp_path / "losses.parquet")
    counting = Counting()

    assert build(reference, data, tmp_path / "losses.parquet", scorers=counting) == metadata
    assert counting.scored == []


@pytest.mark.parametrize("finished", [True, False], ids=["table", "parts"])
@pytest.mark.parametrize("change", ["weights", "data", "micro_batch_rows"])
def test_losses_of_something_else_are_refused_and_left(
    change: str, finished: bool, reference: Reference, data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "losses.parquet"
    build(reference, data, path, is_stopped=(lambda: False) if finished else Stopping(1))
    before = {file: file.read_bytes() for file in tmp_path.rglob("losses*") if file.is_file()}
    settings: dict[str, Any] = {}
    if change == "weights":
        other = SafetensorsFile(digits.weights(8))
        reference = Reference(IMAGES.task, IMAGES.name, IMAGES.config, b"".join(chunk for _, chunk in other.chunks()))
    elif change == "data":
        write(data / "c.parquet", arrays(IMAGES, 3, seed=5), example_id=[2001, 2002, 2003])
    else:
        settings["scoring"] = Scoring(8, "cpu", 1, {})

    kind = "other losses" if finished else "parts of other losses"
    with pytest.raises(JobError, match=f"holds {kind}: {change} is .* there and .* here"):
        build(reference, data, path, **settings)
    assert {file: file.read_bytes() for file in tmp_path.rglob("losses*") if file.is_file()} == before


def test_ids_that_occur_twice_are_named_before_anything_is_scored(
    reference: Reference, data: Path, tmp_path: Path
) -> None:
    known = ids_of(ROWS).tolist()
    again = sorted(known[:7])
    write(data / "c.parquet", arrays(IMAGES, 7), example_id=again)
    counting = Counting()

    shown = ", ".join(map(str, again[:5]))
    with pytest.raises(JobError, match=rf"7 example ids occur more than once: {shown}, …; give every example"):
        build(reference, data, tmp_path / "losses.parquet", scorers=counting)
    assert counting.scored == []
    assert list(tmp_path.glob("losses*")) == []


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([1, None, 3], "has 1 nulls, the first in row 1"),
        ([0.5, 1.5, 2.5], "is double; example ids are whole numbers or texts"),
        (pa.array([1, 2, 1 << 63], pa.uint64()), "example ids are int64 or texts"),
    ],
)
def test_ids_that_are_none_are_refused(ids: Any, said: str, reference: Reference, tmp_path: Path) -> None:
    file = write(tmp_path / "d.parquet", arrays(IMAGES, 3), example_id=ids)

    with pytest.raises(JobError, match=said):
        build(reference, file, tmp_path / "losses.parquet")


def test_files_with_ids_of_two_types_are_refused(reference: Reference, data: Path, tmp_path: Path) -> None:
    write(data / "c.parquet", arrays(IMAGES, 2), example_id=["a", "b"])

    with pytest.raises(JobError, match="'example_id' is int64 and string; give ids of one type"):
        build(reference, data, tmp_path / "losses.parquet")


def test_bad_rows_are_named_by_their_place_in_the_file_and_leave_no_table(
    reference: Reference, data: Path, tmp_path: Path
) -> None:
    examples = arrays(IMAGES, 20)
    examples["label"][17] = 4
    write(data / "c.parquet", examples, example_id=list(range(3000, 3020)))

    with pytest.raises(JobError, match=r"^/.*c\.parquet: column 'label' has 4 in row 17; every value") as caught:
        build(reference, data, tmp_path / "losses.parquet")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "losses.parquet").exists()


def test_what_lies_in_the_way_is_refused(reference: Reference, data: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.parquet", arrays(IMAGES, 2))
    with pytest.raises(JobError, match="is no table of reference losses"):
        build(reference, data, other)
    (tmp_path / "losses.parquet.parts").mkdir()
    (tmp_path / "losses.parquet.parts" / "diary.txt").write_text("dear")
    with pytest.raises(JobError, match=r"holds 'diary\.txt', which is no part"):
        build(reference, data, tmp_path / "losses.parquet")
    with (
        locked(tmp_path / "mine.parquet.parts"),
        pytest.raises(JobError, match=r"another process works in .*mine\.parquet\.parts"),
    ):
        build(reference, data, tmp_path / "mine.parquet")


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    registry = ArchitectureRegistry()
    for width, classes in ((3, 4), (2, 10)):
        settings = {**IMAGES.config, "width": width, "num_classes": classes}
        with pytest.raises(InvalidWeightsError, match="that do not fit"):
            read_reference(tmp_path / "w.safetensors", IMAGES.task, IMAGES.name, settings, registry)
    with pytest.raises(JobError, match="there are no weights at"):
        read_reference(tmp_path / "none", IMAGES.task, IMAGES.name, IMAGES.config, registry)


def test_the_digest_changes_with_everything_that_a_loss_depends_on_and_with_nothing_else(
    reference: Reference, data: Path, tmp_path: Path
) -> None:
    registry = ArchitectureRegistry()

    def digest(weights: str = "sha256:a", **settings: Any) -> str:
        return digest_of(loss_identity(IMAGES.task, IMAGES.name, {**IMAGES.config, **settings}, weights, registry))

    digests = [digest(), digest("sha256:b"), digest(mean=0.5), digest(width=3), digest(input_dtype="float32")]
    assert len(set(digests)) == len(digests)
    assert digest(mean=1.0) == digest(mean=1)
    small, large = (
        build(reference, data, tmp_path / "a.parquet"),
        build(reference, data, tmp_path / "b.parquet", scoring=Scoring(8, "cpu", 1, {}), part_rows=100),
    )
    assert small is not None
    assert large is not None
    assert small["digest"] == large["digest"]
    assert small["digest"] == digest_of(
        loss_identity(IMAGES.task, IMAGES.name, IMAGES.config, reference.digest, registry)
    )
    assert METADATA in pq.read_schema(tmp_path / "a.parquet").metadata
