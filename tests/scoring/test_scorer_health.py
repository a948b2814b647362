"""A scorer that fails, and one whose device is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from preceptor.errors import InternalError, InvalidRunError
from preceptor_service.scoring.pool import ScorerFailedError, ScorerUnreachableError
from preceptor_service.scoring.scorer_health import ScorerHealth


class Device:
    """Works until it is broken; counts who asked."""

    def __init__(self, works: bool = True) -> None:
        self.works = works
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.works


async def work(health: ScorerHealth, error: Exception | None = None, failed_at: tuple[str, ...] = ()) -> str:
    async with health.watching(failed_at):
        if error is not None:
            raise error
        return "done"


def run(scenario: Callable[[], object]) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(20):
            await scenario()  # type: ignore[misc]

    asyncio.run(in_time())


def failure() -> ScorerFailedError:
    return ScorerFailedError(InternalError("broken"))


def test_a_failure_with_a_device_that_works_leaves_the_scorer_healthy() -> None:
    async def scenario() -> None:
        device = Device()
        health = ScorerHealth(lambda: "a", device)
        for _ in range(10):
            with pytest.raises(ScorerFailedError) as raised:
                await work(health, failure())
            assert raised.value.scorer == "a"
        assert device.asked == 10
        health.check()
        assert await work(health) == "done"

    run(scenario)


def test_a_device_that_is_gone_fails_the_health_check_and_takes_no_more_work() -> None:
    async def scenario() -> None:
        device = Device(works=False)
        health = ScorerHealth(lambda: "a", device)
        assert await work(health) == "done"
        health.check()
        with pytest.raises(ScorerFailedError):
            await work(health, failure())
        with pytest.raises(RuntimeError, match="has to be replaced"):
            health.check()
        with pytest.raises(ScorerUnreachableError):
            await work(health)
        assert device.asked == 1

    run(scenario)


def test_what_is_wrong_with_the_request_does_not_ask_the_device() -> None:
    async def scenario() -> None:
        device = Device(works=False)
        health = ScorerHealth(lambda: "a", device)
        with pytest.raises(InvalidRunError):
            await work(health, InvalidRunError("no such setting"))
        assert device.asked == 0
        health.check()

    run(scenario)


def test_who_failed_with_a_micro_batch_leaves_it_to_others() -> None:
    async def scenario() -> None:
        health = ScorerHealth(lambda: "a", Device())
        with pytest.raises(ScorerUnreachableError):
            await work(health, failed_at=("b", "a"))
        assert await work(health, failed_at=("b",)) == "done"

    run(scenario)


def test_a_failure_keeps_its_scorer_busy_for_a_moment_so_that_others_are_asked_first() -> None:
    async def scenario() -> None:
        health = ScorerHealth(lambda: "a", Device())
        for attempt in (work(health, failure()), work(health, failed_at=("a",))):
            started = time.perf_counter()
            with pytest.raises((ScorerFailedError, ScorerUnreachableError)):
                await attempt
            assert time.perf_counter() - started >= 0.2

    run(scenario)
