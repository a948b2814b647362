"""Super-batches that do not fit: one clear Failure each, and the next good one is answered."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from preceptor import Run, SelectionClient
from preceptor.errors import InvalidSuperBatchError, NonFiniteScoresError, StepExistsError, TooLargeError
from preceptor.v1 import selection_pb2
from tests.service import digits
from tests.service.conftest import MAX_ROWS, MAX_SUPER_BATCH_BYTES, Control
from tests.service.raw import RawChannel, chunk, header, select_open, super_batch


@pytest.fixture(autouse=True)
def alive(control: Control) -> Iterator[None]:
    yield
    control.check()


def _with(**columns: Any) -> dict[str, Any]:
    return {**digits.candidates(0, rows=8), **columns}


def _without(name: str) -> dict[str, Any]:
    return {key: value for key, value in digits.candidates(0, rows=8).items() if key != name}


_LABELS = np.zeros(8, np.int64)

_MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "float images": (
        _with(image=np.zeros((8, 1, 8, 8), np.float32)),
        r"column 'image' is float of shape \[1, 8, 8\] per example; this run expects uint8 of shape \[1, 8, 8\]",
    ),
    "int32 labels": (_with(label=_LABELS.astype(np.int32)), r"column 'label' is int32 .* this run expects int64"),
    "larger images": (
        _with(image=np.zeros((8, 1, 9, 8), np.uint8)),
        r"column 'image' is uint8 of shape \[1, 9, 8\] per example; this run expects uint8 of shape \[1, 8, 8\]",
    ),
    "flat images": (_with(image=np.zeros((8, 64), np.uint8)), r"uint8 of shape \[64\]"),
    "labels of one more dimension": (_with(label=_LABELS.reshape(8, 1)), r"column 'label' is int64 of shape \[1\]"),
    "no label": (_without("label"), r"has columns \['image'\]; this run expects \['image', 'label'\]"),
    "no image": (_without("image"), r"has columns \['label'\]"),
    "another name": ({"picture": _with()["image"], "label": _LABELS}, r"has columns \['picture', 'label'\]"),
    "one column too many": (_with(weight=_LABELS), r"has columns \['image', 'label', 'weight'\]"),
    "columns in another order": (
        {"label": _LABELS, "image": _with()["image"]},
        r"has columns \['label', 'image'\]; this run expects \['image', 'label'\]",
    ),
    "label above the classes": (
        _with(label=_LABELS + 4),
        r"column 'label' has 4 in row 0; every value must be from 0 to 3",
    ),
    "label below the classes": (_with(label=np.array([0] * 7 + [-1])), r"column 'label' has -1 in row 7"),
    "no rows": (digits.candidates(0, rows=0), r"the super-batch is empty: 0 rows .* offer at least one candidate"),
}


@pytest.mark.parametrize(("batch", "text"), _MISFITS.values(), ids=_MISFITS.keys())
def test_a_super_batch_that_does_not_fit_the_run_is_refused(run: Run, batch: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidSuperBatchError, match=text):
        run.select(batch, sub_batch_size=1, step=1)


@pytest.mark.parametrize(("batch", "text"), _MISFITS.values(), ids=_MISFITS.keys())
def test_scoring_refuses_the_same_super_batches(run: Run, batch: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidSuperBatchError, match=text):
        run.score(batch)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_input_that_is_not_finite_is_refused(client: SelectionClient, run_id: str, value: float) -> None:
    run = client.create_run(digits.spec(run_id, model_config=digits.FLOAT_MODEL, score="hard_learner"))
    run.push_weights(digits.weights(1, digits.FLOAT_MODEL), step=0)
    batch = digits.float_candidates(0, rows=8)
    batch["image"][5, 0, 3, 3] = value
    with pytest.raises(
        InvalidSuperBatchError, match=f"column 'image' has {value} in row 5; every value must be finite"
    ):
        run.select(batch, sub_batch_size=1, step=1)
    good = run.select(digits.float_candidates(0, rows=8), sub_batch_size=1, step=2)
    assert len(good.indices) == 1


@pytest.mark.parametrize("size", [0, -1, -(2**63), 33, 2**63 - 1])
def test_a_sub_batch_size_outside_the_super_batch_is_refused(run: Run, size: int) -> None:
    with pytest.raises(InvalidSuperBatchError, match=f"sub_batch_size is {size}; choose from 1 to the 32 candidates"):
        run.select(digits.candidates(0), sub_batch_size=size, step=1)


def test_a_sub_batch_may_be_the_whole_super_batch_or_one_candidate(run: Run) -> None:
    whole = run.select(digits.candidates(0), sub_batch_size=32, step=1)
    one = run.select(digits.candidates(0), sub_batch_size=1, step=2)
    assert sorted(whole.indices.tolist()) == list(range(32))
    assert len(one.indices) == 1


@pytest.fixture
def overflowing(client: SelectionClient, run_id: str) -> Run:
    """A run whose logits are infinite for every image but a blank one, under finite weights."""
    run = client.create_run(digits.spec(run_id, model_config=digits.FLOAT_MODEL, score="hard_learner"))
    state = digits.weights(1, digits.FLOAT_MODEL)
    for name in ("conv1", "conv2", "conv3", "head"):
        state[f"{name}.weight"] = state[f"{name}.weight"].abs() * 1e30
        state[f"{name}.bias"] = state[f"{name}.bias"] * 0
    run.push_weights(state, step=0)
    return run


def _mostly_overflowing(blank: int) -> dict[str, Any]:
    batch = digits.float_candidates(0, rows=20)
    batch["image"][:blank] = 0
    return batch


def test_more_than_the_finite_scores_cannot_be_selected(overflowing: Run) -> None:
    with pytest.raises(NonFiniteScoresError, match=r"\b3\b") as raised:
        overflowing.select(_mostly_overflowing(blank=3), sub_batch_size=4, step=1)
    assert raised.value.code == "FAILED_PRECONDITION"
    assert "4" in str(raised.value)


def test_candidates_without_a_finite_score_are_left_out_and_counted(overflowing: Run) -> None:
    selection = overflowing.select(_mostly_overflowing(blank=3), sub_batch_size=3, step=1)
    assert sorted(selection.indices.tolist()) == [0, 1, 2]
    assert selection.non_finite_count == 17
    assert np.isnan(selection.scores[3:]).all()
    assert np.isfinite(selection.scores[:3]).all()


def test_a_super_batch_above_the_limit_of_bytes_is_refused_by_the_client(run: Run) -> None:
    with pytest.raises(TooLargeError, match=f"the gateway takes {MAX_SUPER_BATCH_BYTES}"):
        run.select(digits.candidates(0, rows=MAX_SUPER_BATCH_BYTES // 64), sub_batch_size=1, step=1)


def test_scoring_a_super_batch_above_the_limit_of_bytes_is_refused(run: Run) -> None:
    with pytest.raises(TooLargeError, match=f"the limit is {MAX_SUPER_BATCH_BYTES}; send fewer rows"):
        run.score(digits.candidates(0, rows=MAX_SUPER_BATCH_BYTES // 64))


def test_a_super_batch_above_the_limit_of_rows_is_refused(run: Run) -> None:
    with pytest.raises(InvalidSuperBatchError, match=f"has {MAX_ROWS + 1} rows, the limit is {MAX_ROWS}; send fewer"):
        run.select(digits.candidates(0, rows=MAX_ROWS + 1), sub_batch_size=1, step=1)


@pytest.mark.parametrize(("step", "rank"), [(-1, 0), (0, -1), (-(2**63), -(2**63))])
def test_a_negative_step_or_rank_is_refused(raw: RawChannel, run: Run, step: int, rank: int) -> None:
    failure = _failure(raw, run, *super_batch(digits.candidates(0), step=step, rank=rank))
    assert (failure.code, failure.message) == (
        "INVALID_ARGUMENT",
        f"step is {step} and rank is {rank}; both start at 0",
    )


def test_a_negative_count_of_own_draws_is_refused(raw: RawChannel, run: Run) -> None:
    failure = _failure(raw, run, *super_batch(digits.candidates(0), client_fallbacks=-1))
    assert (failure.code, failure.message) == ("INVALID_ARGUMENT", "client_fallbacks is -1; it starts at 0")


def test_the_largest_step_and_rank_are_taken(run: Run) -> None:
    selection = run.select(digits.candidates(0), sub_batch_size=4, step=2**63 - 1, rank=2**63 - 1)
    assert len(selection.indices) == 4


def test_the_same_step_with_the_same_candidates_gets_the_same_answer_again(run: Run, client: SelectionClient) -> None:
    first = run.select(digits.candidates(0), sub_batch_size=4, step=1)
    run.select(digits.candidates(1), sub_batch_size=4, step=2)
    again = run.select(digits.candidates(0), sub_batch_size=4, step=1)
    assert again.indices.tolist() == first.indices.tolist()
    assert again.scores.tolist() == first.scores.tolist()
    assert run.status().super_batches == 2


def test_the_same_step_with_other_candidates_is_refused(run: Run) -> None:
    run.select(digits.candidates(0), sub_batch_size=4, step=1)
    with pytest.raises(StepExistsError, match=r"step 1 of rank 0 .* was used for other candidates; .*later step"):
        run.select(digits.candidates(1), sub_batch_size=4, step=1)
    assert StepExistsError.code == "ALREADY_EXISTS"


def test_the_same_step_with_another_sub_batch_size_is_refused(run: Run) -> None:
    run.select(digits.candidates(0), sub_batch_size=4, step=1)
    with pytest.raises(StepExistsError, match="step 1 of rank 0"):
        run.select(digits.candidates(0), sub_batch_size=5, step=1)


def test_another_rank_is_another_super_batch(run: Run) -> None:
    first = run.select(digits.candidates(0), sub_batch_size=8, step=1, rank=0)
    second = run.select(digits.candidates(0), sub_batch_size=8, step=1, rank=1)
    assert first.indices.tolist() != second.indices.tolist()


def _failure(raw: RawChannel, run: Run, *messages: selection_pb2.SelectRequest) -> selection_pb2.Failure:
    """The Failure of the first super-batch in `messages`; a good one after it on the same stream is answered."""
    call = raw.call("Select", select_open(run.run_id), *messages)
    answer = call.answer()
    assert answer.WhichOneof("kind") == "failure"
    call.send(*super_batch(digits.candidates(0), step=9, sub_batch_size=3))
    assert len(call.answer().selection.indices) == 3 * 8
    call.half_close()
    assert call.status().code == "OK"
    return answer.failure


def _body(batch: dict[str, Any] | None = None) -> bytes:
    return super_batch(batch or digits.candidates(0, rows=8))[1].chunk.data


@pytest.mark.parametrize("announced", [1, 7, 9, MAX_ROWS])
def test_another_row_count_than_announced_is_refused(run: Run, raw: RawChannel, announced: int) -> None:
    failure = _failure(raw, run, header(_body(), row_count=announced), chunk(_body()))
    assert failure.code == "INVALID_ARGUMENT"
    assert failure.reason == "SUPER_BATCH_INVALID"
    assert failure.message == (f"the super-batch has 8 rows, its header announced {announced}; announce what you send")


@pytest.mark.parametrize("announced", [0, -1, MAX_ROWS + 1, 2**63 - 1])
def test_an_impossible_row_count_is_refused(run: Run, raw: RawChannel, announced: int) -> None:
    failure = _failure(raw, run, header(_body(), row_count=announced), chunk(_body()))
    assert failure.reason == "SUPER_BATCH_INVALID"
    assert f"{announced} rows" in failure.message


def test_a_body_of_no_bytes_is_refused(run: Run, raw: RawChannel) -> None:
    failure = _failure(raw, run, header(b"", row_count=8))
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "SUPER_BATCH_INVALID")
    assert "the super-batch is empty: 8 rows in 0 bytes" in failure.message


@pytest.mark.parametrize("size", [0, 33])
def test_a_digest_of_a_wrong_size_is_refused(run: Run, raw: RawChannel, size: int) -> None:
    failure = _failure(raw, run, header(_body(), digest=b"d" * size), chunk(_body()))
    assert failure.reason == "SUPER_BATCH_INVALID"
    assert failure.message == f"digest has {size} bytes; give 1 to 32"


def _arrow(write: Callable[[io.BytesIO], None]) -> bytes:
    sink = io.BytesIO()
    write(sink)
    return sink.getvalue()


def _record_batch() -> Any:
    return pa.ipc.open_stream(_body()).read_all().to_batches()[0]


def _stream(sink: io.BytesIO, batches: int = 1, **options: Any) -> None:
    batch = _record_batch()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for _ in range(batches):
            writer.write_batch(batch)


def _file(sink: io.BytesIO) -> None:
    with pa.ipc.new_file(sink, _record_batch().schema) as writer:
        writer.write_batch(_record_batch())


def _with_nulls(sink: io.BytesIO) -> None:
    batch = _record_batch()
    labels = pa.array([None, *[0] * 7], pa.int64())
    batch = pa.RecordBatch.from_arrays([batch.column("image"), labels], names=["image", "label"])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)


_BODIES: dict[str, tuple[bytes, str]] = {
    "noise": (np.random.default_rng(0).bytes(5000), "not an Arrow IPC stream"),
    "zeros": (b"\0" * 5000, "not an Arrow IPC stream"),
    "cut off": (_body()[:-100], "super-batch"),
    "schema alone": (_arrow(lambda sink: _stream(sink, batches=0)), "one record batch"),
    "two record batches": (_arrow(lambda sink: _stream(sink, batches=2)), "send exactly one record batch"),
    "compressed": (_arrow(lambda sink: _stream(sink, compression="zstd")), "compressed; send it uncompressed"),
    "file format": (_arrow(_file), "not an Arrow IPC stream"),
    "nulls": (_arrow(_with_nulls), "column 'label' has 1 nulls; fill or drop them"),
}


@pytest.mark.parametrize(("body", "text"), _BODIES.values(), ids=_BODIES.keys())
def test_a_body_that_is_not_one_plain_record_batch_is_refused(
    run: Run, raw: RawChannel, body: bytes, text: str
) -> None:
    failure = _failure(raw, run, header(body), chunk(body))
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "SUPER_BATCH_INVALID")
    assert text in failure.message


def test_a_failed_super_batch_is_counted_and_its_step_can_be_asked_again(run: Run) -> None:
    with pytest.raises(InvalidSuperBatchError):
        run.select(_with(label=_LABELS + 4), sub_batch_size=1, step=1)
    run.select(_with(), sub_batch_size=1, step=1)
    status = run.status()
    assert (status.failures, status.super_batches, status.candidates, status.selected) == (1, 1, 8, 1)


def test_an_operators_code_that_fails_is_an_internal_error_without_its_text(
    client: SelectionClient, raw: RawChannel, run_id: str
) -> None:
    spec = digits.spec(run_id, model="failing", model_config={}, score="hard_learner")
    run = client.create_run(spec)
    run.push_weights(digits.gated_weights(1), step=0)
    call = raw.call("Select", select_open(run_id), *super_batch(digits.gated_candidates(0), sub_batch_size=1))
    failure = call.answer().failure
    call.cancel()
    assert (failure.code, failure.reason) == ("INTERNAL", "INTERNAL")
    assert "its log says why" in failure.message
    assert "secret" not in failure.message


def test_a_super_batch_may_name_its_examples(run: Run) -> None:
    plain = run.select(digits.candidates(0), sub_batch_size=4, step=1)
    by_number = run.select(digits.candidates(0), sub_batch_size=4, step=1, rank=1, example_id=np.arange(32))
    by_text = run.select(digits.candidates(0), sub_batch_size=4, step=2, example_id=[f"e{i}" for i in range(32)])
    assert [len(selection.indices) for selection in (plain, by_number, by_text)] == [4, 4, 4]
    np.testing.assert_array_equal(plain.scores, by_text.scores)
    np.testing.assert_array_equal(plain.scores, by_number.scores)
