"""A trainer that no gateway answers draws for itself, where its run would rather have any sub-batch than wait."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from preceptor import CoTraining, Run, RunSpec, SelectionClient
from preceptor.errors import UnavailableError
from tests.client.conftest import candidates
from tests.client.fake_service import WAIT_S, Abort, FakeService, Received, Stream
from tests.naive.selection import select as naive_select

ROWS, COUNT = 8, 3
SPEC = RunSpec("digits", "small_cnn", seed=7, deadline_s=0.1, on_deadline="uniform")


@pytest.fixture(autouse=True)
def short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preceptor.fallback._WAY_S", 0.2)


def hold(stream: Stream, received: Received) -> None:
    """Answers nothing, as a gateway that hangs."""


def uniform_draw(step: int, rank: int = 0) -> list[int]:
    alike = [0.0] * ROWS
    uniform = RunSpec("digits", "small_cnn", seed=7, score="uniform", selector="uniform")
    return naive_select(uniform, learner_losses=alike, reference_losses=alike, count=COUNT, step=step, rank=rank)


def test_where_a_gateway_hangs_the_client_draws_what_the_gateway_would(
    service: FakeService, client: SelectionClient
) -> None:
    run = client.create_run(SPEC)
    service.on_super_batch = hold

    selections = [run.select(candidates(ROWS), COUNT, step, rank=2) for step in (4, 5)]

    assert [selection.indices.tolist() for selection in selections] == [uniform_draw(step, rank=2) for step in (4, 5)]
    first = selections[0]
    assert (first.step, first.rank, first.is_fallback, first.learner_version) == (4, 2, True, None)
    assert first.indices.dtype == np.int64
    assert (first.scores.size, first.weights) == (0, None)
    assert run.own_fallbacks == 2


def test_where_nobody_listens_any_more_the_client_draws_and_later_asks_again() -> None:
    first = FakeService()
    with first, SelectionClient(first.target, timeout_s=WAIT_S) as client:
        run = client.create_run(SPEC)
        assert not run.select(candidates(ROWS), COUNT, 0).is_fallback
        first.stop()
        assert run.select(candidates(ROWS), COUNT, 1).is_fallback
        with FakeService(port=first.port):
            again = (run.select(candidates(ROWS), COUNT, step) for step in range(2, 200))
            assert not all(selection.is_fallback for selection in again)


def test_one_outage_is_told_once(
    service: FakeService, client: SelectionClient, caplog: pytest.LogCaptureFixture
) -> None:
    run = client.create_run(SPEC)

    def told() -> int:
        return sum(
            record.levelno == logging.WARNING and "drawn uniformly here" in record.getMessage()
            for record in caplog.records
        )

    service.on_super_batch = hold
    for step in range(3):
        run.select(candidates(ROWS), COUNT, step)
    assert told() == 1
    service.on_super_batch = lambda stream, received: stream.answer(received)
    assert not run.select(candidates(ROWS), COUNT, 3).is_fallback
    service.on_super_batch = hold
    run.select(candidates(ROWS), COUNT, 4)
    assert told() == 2


def test_the_next_gateway_that_answers_is_told_once_how_many_were_drawn_here(
    service: FakeService, client: SelectionClient
) -> None:
    run = client.create_run(SPEC)
    service.on_super_batch = hold
    for step in range(3):
        assert run.select(candidates(ROWS), COUNT, step).is_fallback
    service.on_super_batch = lambda stream, received: stream.answer(received)

    answered = [run.select(candidates(ROWS), COUNT, step).is_fallback for step in range(3, 7)]

    assert not any(answered)
    assert [received.header.client_fallbacks for received in service.received if received.key[0] >= 3] == [0, 3, 0, 0]


def test_how_many_were_drawn_here_is_told_again_where_a_gateway_was_lost_before_it_answered(
    service: FakeService, client: SelectionClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = client.create_run(SPEC)
    service.on_super_batch = hold
    for step in range(3):
        assert run.select(candidates(ROWS), COUNT, step).is_fallback
    monkeypatch.setattr("preceptor.fallback._WAY_S", WAIT_S)
    service.streams[0].answer(service.received[0])  # the gateway is heard of again
    service.wait_for("the client knows", lambda: not run._stream._is_alone)
    lost = [run.submit(candidates(ROWS), COUNT, step) for step in (3, 4)]
    service.wait_for("they arrived", lambda: len(service.received) == 5)
    service.on_super_batch = lambda stream, received: stream.answer(received)

    service.streams[0].abort("UNAVAILABLE")
    assert not any(future.result(WAIT_S).is_fallback for future in lost)
    assert not run.select(candidates(ROWS), COUNT, 5).is_fallback

    told = [received.header.client_fallbacks for received in service.received if received.key[0] >= 3]
    assert told == [3, 0, 3, 0, 0]


def test_a_gateway_that_only_says_that_it_cannot_holds_up_no_longer_than_none(
    service: FakeService, client: SelectionClient
) -> None:
    run = client.create_run(SPEC)
    service.on_super_batch = lambda stream, received: stream.fail(received, "UNAVAILABLE", "UNAVAILABLE", "try again")
    assert run.select(candidates(ROWS), COUNT, 4).indices.tolist() == uniform_draw(4)


def test_a_late_answer_to_what_was_drawn_here_changes_nothing(service: FakeService, client: SelectionClient) -> None:
    run = client.create_run(SPEC)
    service.on_super_batch = hold
    assert run.select(candidates(ROWS), COUNT, 0).is_fallback
    service.on_super_batch = lambda stream, received: stream.answer(received)
    service.streams[0].answer(service.received[0])
    assert run.select(candidates(ROWS), COUNT, 1).indices.tolist() == [0, 1, 2]


def test_a_gateway_that_goes_on_answering_is_waited_for(service: FakeService, client: SelectionClient) -> None:
    run = client.create_run(SPEC)
    service.on_super_batch = hold
    late = run.submit(candidates(ROWS), COUNT, 0)
    service.wait_for("it arrived", lambda: len(service.received) == 1)
    for _ in range(10):
        with service.changed:
            service.changed.wait(0.1)
        service.streams[0].give_credit(0)
    service.streams[0].answer(service.received[0])
    assert not late.result(WAIT_S).is_fallback


def test_a_run_without_a_deadline_waits_for_the_time_out_of_the_call() -> None:
    with FakeService() as service, SelectionClient(service.target, timeout_s=WAIT_S) as client:
        run = client.create_run(RunSpec("digits", "small_cnn", seed=7, on_deadline="uniform"))
        service.on_super_batch = hold
        assert run.select(candidates(ROWS), COUNT, 9, timeout_s=0.3).indices.tolist() == uniform_draw(9)


def test_the_full_window_of_a_gateway_that_hangs_holds_nobody_up() -> None:
    with FakeService(window_bytes=1000) as service, SelectionClient(service.target, timeout_s=WAIT_S) as client:
        run = client.create_run(SPEC)
        service.on_super_batch = hold
        futures = [run.submit(candidates(ROWS, first=step), COUNT, step) for step in range(6)]
        assert [future.result(WAIT_S).indices.tolist() for future in futures] == [uniform_draw(n) for n in range(6)]


def test_importance_weights_of_a_draw_here_are_one(service: FakeService, client: SelectionClient) -> None:
    run = client.create_run(
        RunSpec("digits", "small_cnn", selector="proportional", deadline_s=0.1, on_deadline="uniform")
    )
    service.on_super_batch = hold
    weights = run.select(candidates(ROWS), COUNT, 0).weights
    assert weights is not None
    assert weights.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "spec",
    [
        RunSpec("digits", "small_cnn", deadline_s=0.1),
        RunSpec("digits", "small_cnn", deadline_s=0.1, on_deadline="uniform", co_training=CoTraining()),
    ],
    ids=["a run that would rather fail", "a co-trained run, which needs every step"],
)
def test_other_runs_are_not_drawn_for(spec: RunSpec, service: FakeService, client: SelectionClient) -> None:
    run = client.create_run(spec)
    service.aborts["Select"] = Abort("UNAVAILABLE")
    with pytest.raises(UnavailableError):
        run.select(candidates(ROWS), COUNT, 0, timeout_s=0.4)
    assert run.own_fallbacks == 0


def test_more_than_there_are_cannot_be_drawn(service: FakeService, client: SelectionClient) -> None:
    run: Run = client.create_run(SPEC)
    service.aborts["Select"] = Abort("UNAVAILABLE")
    with pytest.raises(UnavailableError):
        run.select(candidates(ROWS), ROWS + 1, 0)
