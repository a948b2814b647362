"""A run with a table of reference losses: selects as live scoring does, scores less, takes no other reference."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file

from preceptor import Run, SelectionClient
from preceptor.errors import InvalidRunError, InvalidSuperBatchError, InvalidWeightsError
from preceptor_service.app import RunningService, start_service
from preceptor_service.config import ReferenceLossesConfig
from preceptor_service.losses_file import CONTENT, METADATA, REFERENCE_LOSS
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.reference.losses_job import build_losses, score_here
from preceptor_service.reference.part_scorer import Layout, Scoring, read_reference
from preceptor_service.reference_losses import ReferenceLossTables
from tests.reference.examples import IMAGES, write
from tests.service import digits
from tests.service.conftest import Metrics, config

LEARNER, REFERENCE = digits.weights(1), digits.weights(2)
POOL = digits.candidates(5, rows=200)
KNOWN = 150
"""Of the pool the first so many are in the table."""


def texts(numbers: Any) -> list[str]:
    """Ids of unequal length, some beyond ASCII."""
    return [f"bild-{'ü' * (number % 4)}{number}" for number in numbers]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    save_file(REFERENCE, folder / "weights.safetensors")
    reference = read_reference(
        folder / "weights.safetensors", IMAGES.task, IMAGES.name, digits.MODEL, ArchitectureRegistry()
    )
    for name, ids in (("numbers", list(range(KNOWN))), ("texts", texts(range(KNOWN)))):
        data = write(folder / f"{name}-data.parquet", {key: POOL[key][:KNOWN] for key in POOL}, example_id=ids)
        build_losses(
            reference, [data], Layout("example_id", {}), Scoring(16, "cpu", 1, {}), 64, folder / f"{name}.parquet",
            score_here, lambda: False, lambda done, total: None,
        )  # fmt: skip
    (folder / "broken.parquet").write_bytes(b"PAR1")
    whole = pq.read_table(folder / "numbers.parquet")
    about = json.loads(whole.schema.metadata[METADATA])
    del about["columns_digest"]
    pq.write_table(
        whole.drop_columns([CONTENT]).replace_schema_metadata({METADATA: json.dumps(about)}), folder / "older.parquet"
    )
    return folder


@pytest.fixture(scope="module")
def tabled(tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    service = start_service(config(tmp_path_factory.mktemp("store"), reference_losses={"directory": str(tables)}))
    yield service
    service.stop()


@pytest.fixture
def client(tabled: RunningService) -> Iterator[SelectionClient]:
    with SelectionClient(f"127.0.0.1:{tabled.ports.grpc}") as client:
        yield client


@pytest.fixture
def metrics(tabled: RunningService) -> Metrics:
    return Metrics(f"http://127.0.0.1:{tabled.ports.metrics}/metrics")


def started(client: SelectionClient, run_id: str, **settings: Any) -> Run:
    run = client.create_run(digits.spec(run_id, **settings))
    run.push_reference(REFERENCE)
    run.push_weights(LEARNER, step=0)
    return run


def offered(rows: Any) -> dict[str, Any]:
    return {name: values[rows] for name, values in POOL.items()}


@pytest.mark.parametrize("table", ["numbers", "texts"])
@pytest.mark.parametrize("score", ["learnability", "easy_reference"])
def test_selections_are_those_of_live_scoring_whatever_the_table_lacks(
    table: str, score: str, client: SelectionClient
) -> None:
    run = started(client, f"{table}-{score}".replace("_", "-"), reference_losses=table, score=score)
    for step, low, high in ((1, 0, KNOWN), (2, 100, 200), (3, KNOWN, 200)):
        rows = np.random.default_rng(step).permutation(np.arange(low, high))[:40]
        ids = rows if table == "numbers" else texts(rows)
        selection = run.select(offered(rows), sub_batch_size=10, step=step, example_id=ids)

        assert selection.indices.tolist() == digits.expected(
            run.spec, offered(rows), LEARNER, REFERENCE, count=10, step=step
        )
        losses = run.score(offered(rows), example_id=ids).reference_losses
        assert losses is not None
        np.testing.assert_allclose(losses, np.array(digits.losses(REFERENCE, offered(rows))), rtol=1e-5, atol=1e-6)


def test_what_is_found_and_what_is_scored_live_is_counted_and_charged(
    client: SelectionClient, metrics: Metrics
) -> None:
    live, run = started(client, "charged-live"), started(client, "charged", reference_losses="numbers")
    rows = np.arange(KNOWN - 30, KNOWN + 10)
    for step in (1, 2):
        for one in (live, run):
            one.select(offered(rows), sub_batch_size=10, step=step, example_id=rows)

    assert metrics.value("preceptor_reference_losses_total", run="charged", source="table") == 60
    assert metrics.value("preceptor_reference_losses_total", run="charged", source="live") == 20
    assert metrics.value("preceptor_reference_losses_total", run="charged-live") == 0
    dear, cheap = live.status().cost, run.status().cost
    assert dear is not None
    assert cheap is not None
    assert cheap.compute_ratio < dear.compute_ratio
    assert (dear.reference_scored_share, cheap.reference_scored_share) == (1, 1 / 4)
    assert dear.ratio == cheap.ratio == 4
    # Of 40 candidates a quarter is scored by the reference, which is as large as the learner copy.
    spent = {name: metrics.value("preceptor_scoring_flops_total", run=name) for name in ("charged", "charged-live")}
    assert spent["charged"] / spent["charged-live"] == pytest.approx((1 + 1 / 4) / 2)


def test_another_reference_is_refused_and_the_right_one_taken_after_it(client: SelectionClient) -> None:
    run = client.create_run(digits.spec("choosy", reference_losses="numbers"))
    with pytest.raises(InvalidWeightsError, match="not the reference that the table of reference losses 'numbers' was"):
        run.push_reference(digits.weights(3))
    assert run.status().reference_digest is None
    taken = run.push_reference(REFERENCE).digest

    assert client.create_run(digits.spec("heir", reference_losses="numbers", reference_digest=taken)).run_id == "heir"
    other = client.create_run(digits.spec("plain")).push_reference(digits.weights(3)).digest
    with pytest.raises(InvalidWeightsError, match=f"its weights are {other}, the table's {taken}"):
        client.create_run(digits.spec("stranger", reference_losses="numbers", reference_digest=other))


def test_another_preprocessing_is_refused_though_the_weights_are_the_same(client: SelectionClient) -> None:
    run = client.create_run(
        digits.spec("shifted", reference_losses="numbers", model_config={**digits.MODEL, "mean": 0.5})
    )
    with pytest.raises(InvalidWeightsError, match="task, model, settings or preprocessing are not"):
        run.push_reference(REFERENCE)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reference_losses": "none"}, "reference_losses is 'none'; this service has no table of that name"),
        ({"reference_losses": "broken"}, "reference_losses is 'broken', which cannot be used"),
        ({"reference_losses": "../etc/passwd"}, r"reference_losses is '\.\./etc/passwd'; it must match"),
        ({"reference_losses": "numbers", "score": "hard_learner"}, "together with score 'hard_learner'"),
        ({"reference_losses": "numbers", "cross_reference": True}, "together with cross_reference"),
    ],
)
def test_a_run_with_a_table_that_cannot_be_is_refused(
    settings: dict[str, Any], said: str, client: SelectionClient
) -> None:
    with pytest.raises(InvalidRunError, match=said):
        client.create_run(digits.spec("impossible", **settings))


def test_a_service_without_tables_says_so() -> None:
    with pytest.raises(InvalidRunError, match=r"this service has no tables \(reference_losses\.directory\)"):
        ReferenceLossTables(ReferenceLossesConfig()).table("numbers")


def test_super_batches_without_ids_or_with_ids_of_another_type_are_refused_and_the_run_goes_on(
    client: SelectionClient,
) -> None:
    run = started(client, "strict", reference_losses="numbers")
    rows = np.arange(20)
    with pytest.raises(InvalidSuperBatchError, match="has no example_id, and this run looks reference losses up in"):
        run.select(offered(rows), sub_batch_size=5, step=1)
    with pytest.raises(InvalidSuperBatchError, match="is string; the ids of table 'numbers' are whole numbers"):
        run.select(offered(rows), sub_batch_size=5, step=2, example_id=texts(rows))

    assert len(run.select(offered(rows), sub_batch_size=5, step=3, example_id=rows).indices) == 5


def test_ids_are_found_by_their_whole_text(tables: Path) -> None:
    table = ReferenceLossTables(ReferenceLossesConfig(directory=tables)).table("texts")
    known = texts(range(KNOWN))
    asked = [*known, "", "bild-", known[0] + "\0", known[-1] + "x" * 99, "zzz"]

    losses, found = table.find(pa.array(asked))

    assert found.tolist() == [True] * KNOWN + [False] * 5
    assert np.isfinite(losses).tolist() == found.tolist()


def test_a_table_is_in_memory_once_and_bounded(tables: Path) -> None:
    opened = ReferenceLossTables(ReferenceLossesConfig(directory=tables))
    first = opened.table("numbers")
    assert opened.table("numbers") is first
    with pytest.raises(
        InvalidRunError, match=rf"takes {KNOWN * 20:,} bytes in memory, the limit is {KNOWN * 20 - 1:,}"
    ):
        ReferenceLossTables(ReferenceLossesConfig(directory=tables, max_bytes=KNOWN * 20 - 1)).table("numbers")


@pytest.mark.parametrize("table", ["numbers", "texts"])
def test_an_id_that_was_given_to_another_example_is_refused_and_the_step_can_be_repeated(
    table: str, client: SelectionClient
) -> None:
    run = started(client, f"reused-{table}", reference_losses=table)
    rows = np.arange(20)
    ids = rows.tolist() if table == "numbers" else texts(rows)
    other = offered(rows)
    other["image"] = other["image"].copy()
    other["image"][[7, 11], 0, 3, 3] ^= 1
    with pytest.raises(InvalidSuperBatchError) as caught:
        run.select(other, sub_batch_size=5, step=1, example_id=ids)
    assert (caught.value.code, str(caught.value)) == (
        "INVALID_ARGUMENT",
        f"example_id {ids[7]!r} in row 7 has other content than the example of that id in the table of reference "
        f"losses {table!r}, and so 1 more rows; offer examples as the table was built from them, give others ids of "
        "their own, or build a table of these",
    )
    relabelled = {**offered(rows), "label": (POOL["label"][rows] + 1) % 4}
    with pytest.raises(InvalidSuperBatchError, match=r"in row 0 has other content .*, and so 19 more rows"):
        run.score(relabelled, example_id=ids)

    again = run.select(offered(rows), sub_batch_size=5, step=1, example_id=ids)
    assert again.indices.tolist() == digits.expected(run.spec, offered(rows), LEARNER, REFERENCE, count=5, step=1)


def test_a_table_from_before_there_were_digests_still_serves(client: SelectionClient) -> None:
    run = started(client, "of-old", reference_losses="older")
    rows = np.arange(20)
    selection = run.select(offered(rows), sub_batch_size=5, step=1, example_id=rows)
    assert selection.indices.tolist() == digits.expected(run.spec, offered(rows), LEARNER, REFERENCE, count=5, step=1)
    run.select(offered(rows), sub_batch_size=5, step=2, example_id=rows[::-1].copy())  # nobody can tell


def altered(table: pa.Table, column: str, change: Callable[[Any], Any]) -> pa.Table:
    place = table.column_names.index(column)
    values = change(table[column].to_pylist())
    return table.set_column(place, column, values if isinstance(values, pa.Array) else pa.array(values))


def losses_changed(change: Callable[[Any], Any]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: altered(table, REFERENCE_LOSS, lambda found: pa.array(change(found), pa.float32()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: pa.concat_tables([t.slice(0, 1), t.slice(0, 1), t.slice(2)]), "0 in row 1 follows 0"),
        (lambda t: t.take(pa.array(range(KNOWN)[::-1])), f"{KNOWN - 2} in row 1 follows {KNOWN - 1}"),
        (lambda t: t.slice(0, 100), f"it has 100 rows, and {KNOWN} were written"),
        (lambda t: pa.concat_tables([t, t.slice(0, 2)]), f"it has {KNOWN + 2} rows, and {KNOWN} were written"),
        (losses_changed(lambda found: [None, *found[1:]]), "column 'reference_loss' has 1 nulls"),
        (losses_changed(lambda found: [float("inf"), *found[1:]]), "column 'reference_loss' has inf in row 0"),
        (losses_changed(lambda found: [float("nan"), *found[1:]]), "1 rows have no loss, and 0 were written so"),
        (losses_changed(lambda found: [loss + 5 for loss in found]), "its columns have another digest"),
        (lambda t: altered(t, CONTENT, lambda found: pa.array(found[::-1], pa.uint64())), "have another digest"),
        (lambda t: t.drop_columns([CONTENT]), "have another digest"),
        (lambda t: altered(t, "example_id", lambda found: [None, *found[1:]]), "column 'example_id' has 1 nulls"),
        (
            lambda t: altered(t, "example_id", lambda found: pa.array(found, pa.float64())),
            "column 'example_id' is double, not int64 or string",
        ),
        (
            lambda t: altered(t, REFERENCE_LOSS, lambda found: pa.array(found, pa.float64())),
            "column 'reference_loss' is double, not float",
        ),
        (lambda t: t.drop_columns([REFERENCE_LOSS]), "it has 0 columns 'reference_loss'"),
        (lambda t: t.append_column("example_id", t["example_id"]), "it has 2 columns 'example_id'"),
    ],
    ids=[
        "twice", "unsorted", "fewer", "more", "no loss", "infinite", "nan", "other losses", "other contents",
        "no contents", "no id", "fractions", "wide", "no column", "two columns",
    ],
)  # fmt: skip
def test_a_table_that_somebody_changed_is_refused_in_one_line(
    change: Callable[[pa.Table], pa.Table], said: str, tables: Path, tmp_path: Path
) -> None:
    whole = pq.read_table(tables / "numbers.parquet")
    pq.write_table(change(whole).replace_schema_metadata(whole.schema.metadata), tmp_path / "changed.parquet")
    with pytest.raises(InvalidRunError) as caught:
        ReferenceLossTables(ReferenceLossesConfig(directory=tmp_path)).table("changed")
    assert caught.value.code == "INVALID_ARGUMENT"
    message = str(caught.value)
    assert message.startswith("reference_losses is 'changed', which cannot be used: ")
    assert "changed.parquet is not as build-reference-losses wrote it: " in message
    assert said in message
    assert message.endswith("; build it again")
    assert "\n" not in message


@pytest.mark.parametrize("table", ["numbers", "texts"])
def test_a_table_that_was_only_written_anew_is_taken(table: str, tables: Path, tmp_path: Path) -> None:
    whole = pq.read_table(tables / f"{table}.parquet")
    pq.write_table(whole, tmp_path / "anew.parquet", row_group_size=7, compression="gzip")
    opened = ReferenceLossTables(ReferenceLossesConfig(directory=tmp_path)).table("anew")
    assert opened.find(whole["example_id"].combine_chunks())[1].all()
