"""A gateway that has no place: the trainer comes back when it was told to, and not too often."""

from __future__ import annotations

import threading
import time

import pytest

from preceptor import Run, RunSpec, SelectionClient
from preceptor.batches import encode
from preceptor.errors import OverloadedError, ScorersUnavailableError, UnavailableError
from preceptor.retry_budget import RetryBudget
from tests.client.conftest import candidates
from tests.client.fake_service import WAIT_S, Abort, FakeService, Received, Stream

RETRY_AFTER_S = 0.2


BODY_BYTES = len(encode(candidates()).body)


def refuse(stream: Stream, received: Received) -> None:
    stream.refuse(received, RETRY_AFTER_S)


def test_what_was_refused_is_sent_again_no_sooner_than_asked_and_before_what_waits(
    service: FakeService, run: Run
) -> None:
    arrived: list[tuple[int, float]] = []

    def refuse_the_first(stream: Stream, received: Received) -> None:
        arrived.append((received.header.step, time.monotonic()))
        refuse(stream, received) if len(arrived) == 1 else stream.answer(received)

    service.on_super_batch = refuse_the_first
    first = run.submit(candidates(), 2, 0)
    service.wait_for("the first was refused", lambda: len(service.received) == 1)
    second = run.submit(candidates(first=1), 2, 1)
    assert [first.result(WAIT_S).step, second.result(WAIT_S).step] == [0, 1]
    again = [moment for step, moment in arrived if step == 0]
    assert again[1] - again[0] >= RETRY_AFTER_S
    assert len(service.streams) == 1


def test_repeats_stay_within_the_budget_and_then_time_runs_out(service: FakeService, run: Run) -> None:
    service.on_super_batch = refuse
    futures = [run.submit(candidates(first=step), 2, step, timeout_s=2.0) for step in range(8)]
    errors = [future.exception(WAIT_S) for future in futures]
    assert [type(error) for error in errors] == [OverloadedError] * 8
    assert all("found no place within 2 s; last: no place" in str(error) for error in errors)
    assert {error.retry_after_s for error in errors if isinstance(error, OverloadedError)} == {RETRY_AFTER_S}
    assert len(service.received) <= 8 + 1


def unavailable(stream: Stream, received: Received) -> None:
    stream.fail(received, "UNAVAILABLE", "UNAVAILABLE", "this gateway knows version 1, try again")


def test_what_is_unavailable_for_a_moment_is_sent_again_by_itself(service: FakeService, run: Run) -> None:
    def fail_at_first(stream: Stream, received: Received) -> None:
        tries = sum(other.key == received.key for other in stream.received)
        unavailable(stream, received) if received.key == (0, 0) and tries <= 3 else stream.answer(received)

    service.on_super_batch = fail_at_first
    futures = [run.submit(candidates(first=step), 2, step) for step in range(3)]
    assert [future.result(WAIT_S).step for future in futures] == [0, 1, 2]
    assert [received.key for received in service.received].count((0, 0)) == 4
    assert len(service.streams) == 1


def test_what_stays_unavailable_is_sent_again_ever_more_slowly_until_its_time_is_up(
    service: FakeService, run: Run
) -> None:
    service.on_super_batch = unavailable
    with pytest.raises(UnavailableError, match=r"was not answered within 2 s; last: this gateway knows version 1"):
        run.select(candidates(), 2, 0, timeout_s=2.0)
    assert 3 <= len(service.received) <= 9  # after 0.05, 0.1, 0.2 … s, each at most halved


def test_trying_again_what_is_unavailable_is_no_first_try_that_earns_another_one(
    service: FakeService, run: Run
) -> None:
    budget = run._stream._retries
    budget.spend(time.monotonic())
    service.on_super_batch = unavailable
    with pytest.raises(UnavailableError):
        run.select(candidates(), 2, 0, timeout_s=1.0)
    assert len(service.received) >= 3
    assert budget._left == pytest.approx(0.05)


def test_scorers_that_were_lost_are_final_for_the_gateway_has_tried(service: FakeService, run: Run) -> None:
    service.on_super_batch = lambda stream, received: stream.fail(
        received, "UNAVAILABLE", "SCORERS_UNAVAILABLE", "5 scorers were lost"
    )
    with pytest.raises(ScorersUnavailableError, match=r"^5 scorers were lost$"):
        run.select(candidates(), 2, 0)
    assert len(service.received) == 1


def test_what_may_be_sent_again_and_lacks_credit_waits_for_it_without_looking_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (
        FakeService(window_bytes=BODY_BYTES, max_chunk_bytes=BODY_BYTES) as narrow,
        SelectionClient(narrow.target, timeout_s=WAIT_S) as client,
    ):
        narrow.on_super_batch = lambda stream, received: stream.refuse(received, 0.01, with_credit=False)
        run = client.create_run(RunSpec("digits", "small_cnn"))
        future = run.submit(candidates(), 2, 0)
        narrow.wait_for("it arrived", lambda: len(narrow.received) == 1)
        waits: list[float | None] = []
        wait = run._stream._changed.wait

        def counted(timeout: float | None = None) -> bool:
            waits.append(timeout)
            return wait(timeout)

        monkeypatch.setattr(run._stream._changed, "wait", counted)
        threading.Event().wait(0.3)
        narrow.on_super_batch = lambda stream, received: stream.answer(received)
        narrow.streams[0].give_credit(BODY_BYTES)
        assert future.result(WAIT_S).step == 0
        assert len(waits) < 30


def test_an_overload_without_a_time_to_come_back_is_final(service: FakeService, run: Run) -> None:
    service.on_super_batch = lambda stream, received: stream.fail(
        received, "RESOURCE_EXHAUSTED", "OVERLOADED", "the journal is full"
    )
    with pytest.raises(OverloadedError, match=r"^the journal is full$"):
        run.select(candidates(), 2, 0)
    assert len(service.received) == 1


def test_a_stream_that_was_one_too_many_is_opened_again(service: FakeService, run: Run) -> None:
    full = Abort("RESOURCE_EXHAUSTED", "OVERLOADED", "256 streams are open", retry_after_s=0.05)
    service.first_aborts["Select"] = [full, full]
    assert run.select(candidates(), 2, 0).step == 0
    service.aborts["Select"] = full
    service.streams[0].abort("UNAVAILABLE")
    with pytest.raises(OverloadedError, match="found no place within 1 s; last: 256 streams are open"):
        run.select(candidates(first=1), 2, 1, timeout_s=1.0)


def test_the_budget_is_one_for_twenty_and_one_more_and_one_where_all_stood_for_ten_seconds() -> None:
    budget, now = RetryBudget(), 1000.0

    def spent() -> int:
        count = 0
        while budget.ready_at(now) <= now:
            budget.spend(now)
            count += 1
        return count

    assert spent() == 1
    assert budget.ready_at(now) == now + 10.0
    for _ in range(19):
        now += 1.0
        budget.earn(now)
    assert spent() == 0
    budget.earn(now)
    assert spent() == 1
    for _ in range(1000):
        budget.earn(now)
    assert spent() == 1
    now += 10.0
    assert spent() == 1
