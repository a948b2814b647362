"""A gateway that has no place: the trainer comes back when it was told to, and not too often."""

from __future__ import annotations

import time

import pytest

from preceptor import Run
from preceptor.errors import OverloadedError
from preceptor.retry_budget import RetryBudget
from tests.client.conftest import candidates
from tests.client.fake_service import WAIT_S, Abort, FakeService, Received, Stream

RETRY_AFTER_S = 0.2


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
