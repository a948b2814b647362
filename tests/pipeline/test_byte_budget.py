"""The byte budget: never exceeded, first come first served, nothing lost on cancellation."""

from __future__ import annotations

import asyncio

from preceptor_service.byte_budget import ByteBudget


async def _hold(budget: ByteBudget, count: int, log: list[str], name: str, release: asyncio.Event) -> None:
    async with budget.hold(count):
        log.append(name)
        await release.wait()


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_does_not_fit_waits_its_turn_and_small_ones_do_not_overtake() -> None:
    async def scenario() -> None:
        budget, log, release = ByteBudget(10), list[str](), asyncio.Event()
        tasks = [
            asyncio.create_task(_hold(budget, count, log, name, release))
            for name, count in (("a", 8), ("b", 5), ("c", 1))
        ]
        await _settle()
        assert log == ["a"]
        release.set()
        await asyncio.gather(*tasks)
        assert log == ["a", "b", "c"]
        assert budget.held_bytes == 0

    asyncio.run(scenario())


def test_something_larger_than_the_whole_budget_is_let_in_alone() -> None:
    async def scenario() -> None:
        budget, log, release = ByteBudget(10), list[str](), asyncio.Event()
        tasks = [
            asyncio.create_task(_hold(budget, count, log, name, release)) for name, count in (("big", 99), ("small", 1))
        ]
        await _settle()
        assert log == ["big"]
        release.set()
        await asyncio.gather(*tasks)
        assert log == ["big", "small"]

    asyncio.run(scenario())


def test_holders_and_waiters_cancelled_in_one_tick_leave_nothing_held() -> None:
    # A deadline cancels all micro-batches of a super-batch at once: those that hold bytes release them
    # before those that wait have noticed that they are cancelled.
    async def scenario() -> None:
        budget, log, release = ByteBudget(10), list[str](), asyncio.Event()
        tasks = [asyncio.create_task(_hold(budget, 8, log, name, release)) for name in ("a", "b", "c", "d")]
        await _settle()
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert budget.held_bytes == 0
        async with asyncio.timeout(5), budget.hold(10):
            assert budget.held_bytes == 10

    asyncio.run(scenario())


def test_a_cancelled_waiter_frees_its_place() -> None:
    async def scenario() -> None:
        budget, log, release = ByteBudget(10), list[str](), asyncio.Event()
        first, second, third = (
            asyncio.create_task(_hold(budget, count, log, name, release))
            for name, count in (("first", 6), ("second", 9), ("third", 4))
        )
        await _settle()
        second.cancel()
        await _settle()
        assert log == ["first", "third"]
        release.set()
        await asyncio.gather(first, third)
        assert budget.held_bytes == 0

    asyncio.run(scenario())
