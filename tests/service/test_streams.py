"""Select streams: many at once, given up, deleted under, and repeated."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from preceptor import Run, Selection, SelectionClient
from preceptor.errors import OverloadedError, RunNotFoundError, WeightsMissingError
from preceptor_service.app import RunningService
from preceptor_service.drawing import Draw
from preceptor_service.pipeline import Pipeline
from preceptor_service.runs import ActiveRun, Pinned
from preceptor_service.selected import Arrived, Selected
from tests.service import digits
from tests.service.architectures import Gate
from tests.service.conftest import MAX_STREAMS, Control, Metrics, target_of, wait_until
from tests.service.raw import RawChannel, select_open, super_batch


@pytest.fixture(autouse=True)
def alive(control: Control) -> Iterator[None]:
    yield
    control.check()


def test_answers_come_in_the_order_sent_each_once(raw: RawChannel, run: Run) -> None:
    call = raw.call("Select", select_open(run.run_id))
    for step in range(1, 21):
        rows = 8 if step % 3 else 0  # every third is refused at once
        call.send(*super_batch(digits.candidates(step, rows), step=step, sub_batch_size=2, row_count=8))
    for step in range(1, 21):
        answer = call.answer()
        assert answer.HasField("failure") == (step % 3 == 0)
        assert (answer.failure if step % 3 == 0 else answer.selection).step == step
    call.half_close()
    assert call.status().code == "OK"


def test_what_was_sent_is_answered_after_the_client_has_closed_its_side(raw: RawChannel, run: Run) -> None:
    call = raw.call("Select", select_open(run.run_id))
    for step in range(5):
        call.send(*super_batch(digits.candidates(step), step=step))
    call.half_close()
    assert [call.answer().selection.step for _ in range(5)] == list(range(5))
    assert call.status().code == "OK"


def test_a_stream_that_is_given_up_stops_its_work(target: str, metrics: Metrics, gated_run: Run, gate: Gate) -> None:
    rows = 16 * 40  # forty micro-batches
    gate.close()
    with RawChannel(target) as channel:
        call = channel.call("Select", select_open(gated_run.run_id))
        call.send(*super_batch(digits.gated_candidates(0, rows=rows)))
        gate.wait_for(arrived=1)
        streams = metrics.value("preceptor_select_streams")
        call.cancel()
        wait_until(lambda: metrics.value("preceptor_select_streams") < streams, "the stream was given up")
    gate.open()
    gated_run.select(digits.gated_candidates(1), sub_batch_size=1, step=2)  # scored after whatever was left
    assert gate.arrived <= 3


def test_many_streams_at_once_get_each_their_own_answers(client: SelectionClient, target: str, run_id: str) -> None:
    def train(number: int) -> None:
        with SelectionClient(target) as own:
            run = own.create_run(digits.spec(f"{run_id}-{number}", seed=number))
            learner, reference = digits.weights(10 + number), digits.weights(2)
            run.push_reference(reference)
            run.push_weights(learner, step=0)
            asked = [(step, digits.candidates(step)) for step in range(1, 6)]
            futures = [run.submit(batch, sub_batch_size=8, step=step) for step, batch in asked]
            for (step, batch), future in zip(asked, futures, strict=True):
                assert future.result(30).indices.tolist() == digits.expected(
                    run.spec, batch, learner, reference, count=8, step=step
                )

    with ThreadPoolExecutor(16) as threads:
        for finished in [threads.submit(train, number) for number in range(16)]:
            finished.result(60)


def test_streams_beyond_the_limit_are_refused_until_one_ends(raw: RawChannel, metrics: Metrics, run: Run) -> None:
    room = MAX_STREAMS - int(metrics.value("preceptor_select_streams"))
    calls = [raw.call("Select", select_open(run.run_id)) for _ in range(room)]
    for call in calls:
        call.receive()
    status = raw.call("Select", select_open(run.run_id)).status()
    assert (status.code, status.reason) == ("RESOURCE_EXHAUSTED", OverloadedError.reason)
    assert (
        f"{MAX_STREAMS} Select streams are open, as many as gateway.max_streams allows; try again later"
        in status.details
    )
    calls.pop().cancel()
    wait_until(lambda: metrics.value("preceptor_select_streams") < MAX_STREAMS, "one ended")
    calls.append(raw.call("Select", select_open(run.run_id)))
    assert calls[-1].receive().WhichOneof("kind") == "opened"
    for call in calls:
        call.cancel()
    wait_until(lambda: metrics.value("preceptor_select_streams") <= MAX_STREAMS - room, "all ended")


def test_a_run_without_weights_does_not_disturb_another(client: SelectionClient, run: Run, run_id: str) -> None:
    lacking = client.create_run(digits.spec(f"{run_id}-lacking", model_config={**digits.MODEL, "num_classes": 7}))
    batches = [digits.candidates(step) for step in range(10)]
    good = [run.submit(batch, sub_batch_size=4, step=step) for step, batch in enumerate(batches)]
    bad = [lacking.submit(batch, sub_batch_size=4, step=step) for step, batch in enumerate(batches)]
    for step, (batch, future) in enumerate(zip(batches, good, strict=True)):
        assert future.result(30).indices.tolist() == digits.expected(
            run.spec, batch, digits.weights(1), digits.weights(2), count=4, step=step
        )
    assert all(isinstance(future.exception(30), WeightsMissingError) for future in bad)


def test_deleting_a_run_ends_its_streams_at_once(client: SelectionClient, raw: RawChannel, run: Run) -> None:
    idle = raw.call("Select", select_open(run.run_id))
    idle.receive()
    client.delete_run(run.run_id)
    status = idle.status()
    assert (status.code, status.reason) == ("NOT_FOUND", "RUN_NOT_FOUND")
    assert f"run '{run.run_id}' was deleted; create it again" in status.details


def test_deleting_a_run_ends_its_streams_while_it_is_scored(
    client: SelectionClient, raw: RawChannel, gated_run: Run, gate: Gate
) -> None:
    gate.close()
    busy = raw.call("Select", select_open(gated_run.run_id), *super_batch(digits.gated_candidates(0)))
    gate.wait_for(arrived=1)
    client.delete_run(gated_run.run_id)
    assert busy.status().code == "NOT_FOUND"


def test_a_trainer_of_a_deleted_run_is_told(target: str, client: SelectionClient, run: Run) -> None:
    with SelectionClient(target) as trainer:
        own = trainer.get_run(run.run_id)
        own.select(digits.candidates(1), sub_batch_size=1, step=1)
        client.delete_run(run.run_id)
        with pytest.raises(RunNotFoundError):
            own.select(digits.candidates(2), sub_batch_size=1, step=2)


def test_a_run_of_a_deleted_name_starts_anew(client: SelectionClient, run: Run) -> None:
    run.select(digits.candidates(1), sub_batch_size=1, step=1)
    client.delete_run(run.run_id)
    anew = client.create_run(digits.spec(run.run_id, seed=9))
    assert (anew.status().learner_version, anew.status().last_step) == (None, None)
    anew.push_reference(digits.weights(4))
    anew.push_weights(digits.weights(3), step=0)
    batch = digits.candidates(2)  # the step is the same, the candidates are not
    assert anew.select(batch, sub_batch_size=5, step=1).indices.tolist() == digits.expected(
        anew.spec, batch, digits.weights(3), digits.weights(4), count=5, step=1
    )


def test_other_candidates_are_refused_while_the_first_are_under_way(
    raw: RawChannel, gated_run: Run, gate: Gate
) -> None:
    gate.close()
    call = raw.call("Select", select_open(gated_run.run_id))
    call.send(*super_batch(digits.gated_candidates(0), step=1), *super_batch(digits.gated_candidates(1), step=1))
    gate.wait_for(arrived=1)
    gate.open()
    assert call.answer().WhichOneof("kind") == "selection"
    refused = call.answer().failure
    assert (refused.code, refused.reason) == ("ALREADY_EXISTS", "STEP_EXISTS")
    call.cancel()


def test_the_same_candidates_under_way_twice_get_the_same_answer(raw: RawChannel, run: Run) -> None:
    call = raw.call("Select", select_open(run.run_id))
    call.send(*super_batch(digits.candidates(0), step=1) * 2)
    first, second = call.answer().selection, call.answer().selection
    assert (first.indices, first.scores) == (second.indices, second.scores)
    call.cancel()


def test_an_answer_that_a_trainer_has_is_not_replaced_by_one_that_is_late(
    raw: RawChannel, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    select, is_pinned, may_answer = Pipeline.select, threading.Event(), threading.Event()

    async def held(self: Pipeline, active: ActiveRun, pinned: Pinned, arrived: Arrived, draw: Draw) -> Selected:
        selected = await select(self, active, pinned, arrived, draw)
        if pinned.learner is not None and pinned.learner.version == 1:
            is_pinned.set()
            assert await asyncio.to_thread(may_answer.wait, 30.0)
        return selected

    monkeypatch.setattr(Pipeline, "select", held)
    messages = super_batch(digits.candidates(1), step=1, sub_batch_size=4)
    broken, another = (raw.call("Select", select_open(run.run_id)) for _ in range(2))
    broken.send(*messages)
    assert is_pinned.wait(30.0)
    run.push_weights(digits.weights(7), step=5)
    another.send(*messages)
    had = another.answer().selection
    assert had.learner_version == 2
    may_answer.set()
    late = broken.answer().selection
    assert (late.learner_version, late.indices) == (2, had.indices)
    assert (
        list(memoryview(had.indices).cast("q"))
        == run.select(digits.candidates(1), sub_batch_size=4, step=1).indices.tolist()
    )
    for call in (broken, another):
        call.cancel()


def test_a_repeated_step_keeps_its_answer_for_a_trainer_that_has_seen_nothing_later(raw: RawChannel, run: Run) -> None:
    """As after a restart from a checkpoint: the steps are repeated, the learner has moved on."""
    first = [run.select(digits.candidates(step), sub_batch_size=4, step=step) for step in (1, 2)]
    run.push_weights(digits.weights(7), step=5)
    call = raw.call("Select", select_open(run.run_id))
    for step in (1, 2, 3):
        call.send(*super_batch(digits.candidates(step), step=step, sub_batch_size=4))
    again = [call.answer().selection for _ in range(3)]
    assert [answer.indices for answer in again[:2]] == [selection.indices.tobytes() for selection in first]
    assert [answer.learner_version for answer in again] == [1, 1, 2]
    call.cancel()


def test_a_repeated_step_never_takes_a_trainer_back_to_an_older_version(raw: RawChannel, run: Run) -> None:
    run.select(digits.candidates(1), sub_batch_size=4, step=1)
    run.push_weights(digits.weights(7), step=5)
    call = raw.call("Select", select_open(run.run_id, observed=2))
    call.send(*super_batch(digits.candidates(1), step=1, sub_batch_size=4))
    again = call.answer().selection
    assert again.learner_version == 2
    assert list(memoryview(again.indices).cast("q")) == digits.expected(
        run.spec, digits.candidates(1), digits.weights(7), digits.weights(2), count=4, step=1
    )
    call.cancel()


def test_a_version_that_does_not_exist_makes_the_trainer_come_back_later(
    raw: RawChannel, client: SelectionClient, run_id: str
) -> None:
    run = client.create_run(digits.spec(run_id, score="hard_learner", deadline_s=0.5))
    run.push_weights(digits.weights(1), step=0)
    call = raw.call("Select", select_open(run.run_id, observed=5), *super_batch(digits.candidates(1)))
    failure = call.answer().failure
    assert (failure.code, failure.reason) == ("UNAVAILABLE", "UNAVAILABLE")
    assert "knows learner version 1" in failure.message
    assert "the trainer has seen 5; try again" in failure.message
    call.cancel()


def test_a_window_smaller_than_the_work_still_answers_everything(
    start: Callable[..., RunningService], run_id: str
) -> None:
    body = len(super_batch(digits.candidates(0))[1].chunk.data)
    service = start(gateway={"window_bytes": body + 100, "max_super_batch_bytes": body, "max_chunk_bytes": 700})
    with SelectionClient(target_of(service)) as client:
        run = client.create_run(digits.spec(run_id, score="hard_learner"))
        run.push_weights(digits.weights(1), step=0)
        futures: list[Future[Selection]] = [
            run.submit(digits.candidates(step), sub_batch_size=4, step=step) for step in range(10)
        ]
        assert [future.result(30).step for future in futures] == list(range(10))
