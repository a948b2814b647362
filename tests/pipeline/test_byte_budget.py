"""The byte budget: never exceeded, first come first served, nothing lost on cancellation."""

from __future__ import annotations

import asyncio

import pytest

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


def test_a_waiter_cancelled_in_the_tick_of_its_turn_holds_nothing() -> None:
    async def scenario() -> None:
        budget = ByteBudget(10)
        await budget.take(8, "a")
        waiting = asyncio.create_task(budget.take(8, "b"))
        await _settle()
        budget.release(8, "a")  # its turn has come, and it has not heard of it
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()
        assert budget.held_bytes == 0

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


def test_whoever_holds_least_is_next() -> None:
    async def scenario() -> None:
        budget, order = ByteBudget(2), list[str]()

        async def work(holder: str) -> None:
            async with budget.hold(1, holder):
                order.append(holder)
                await _settle()

        greedy = [asyncio.create_task(work("greedy")) for _ in range(100)]
        await asyncio.sleep(0)
        modest = [asyncio.create_task(work("modest")) for _ in range(3)]
        await asyncio.gather(*greedy, *modest)
        assert [position for position, holder in enumerate(order) if holder == "modest"][-1] < 10

    asyncio.run(scenario())


def test_a_holder_leaves_as_much_room_as_it_takes() -> None:
    async def scenario() -> None:
        budget = ByteBudget(12, leaves_room=True)
        await budget.take(6, "a")
        assert not budget.has_room(1, "a")
        waiting = asyncio.create_task(budget.take(1, "a"))
        await _settle()
        async with asyncio.timeout(5):
            await budget.take(3, "b")  # past "a", which waits for its own share
        assert not budget.has_room(1, "b")
        assert not waiting.done()
        async with asyncio.timeout(5):
            await budget.take(3, "c")  # the first of a holder may fill it
        assert budget.held_bytes == 12
        budget.release(6, "a")
        await waiting
        assert budget.held_bytes == 7

    asyncio.run(scenario())


def test_what_is_large_is_not_overtaken_for_ever() -> None:
    async def scenario() -> None:
        budget = ByteBudget(10)
        await budget.take(6, "small")
        large = asyncio.create_task(budget.take(10, "large"))
        await _settle()
        late = asyncio.create_task(budget.take(1, "small"))
        await _settle()
        assert not late.done()
        budget.release(6, "small")
        await large
        assert not late.done()
        budget.release(10, "large")
        await late

    asyncio.run(scenario())


def test_the_wait_is_told_from_how_fast_a_holder_was_served() -> None:
    now = 0.0

    async def scenario() -> None:
        nonlocal now
        budget = ByteBudget(100, clock=lambda: now)
        await budget.take(100, "busy")
        assert budget.expected_wait_s("busy") == 0.0  # nobody knows yet
        now = 50.0
        budget.release(20, "busy")
        assert budget.expected_wait_s("busy") == 0.0  # that long it may have taken to load the weights
        now = 51.0
        budget.release(20, "busy")
        assert budget.expected_wait_s("busy") == pytest.approx(3.0, rel=0.2)  # 60 bytes at 20 per second
        waiting = asyncio.create_task(budget.take(60, "busy"))
        await _settle()
        assert budget.expected_wait_s("busy") == pytest.approx(6.0, rel=0.2)
        assert budget.expected_wait_s("newcomer") == 0.0
        now = 55.0
        assert 30.0 < budget.expected_wait_s("busy") < 90.0  # nothing came for two half-lives
        budget.release(60, "busy")
        await waiting

    asyncio.run(scenario())


def test_a_steady_rate_is_known_within_a_few_turns_and_a_new_one_within_seconds() -> None:
    now = 0.0

    async def scenario() -> None:
        nonlocal now
        budget = ByteBudget(10_000, clock=lambda: now)
        await budget.take(10_000, "steady")
        for _ in range(5):
            now += 0.2
            budget.release(10, "steady")
        assert budget.expected_wait_s("steady") == pytest.approx((10_000 - 50) / 50, rel=0.1)
        for _ in range(40):
            now += 0.2
            budget.release(100, "steady")
        assert budget.expected_wait_s("steady") == pytest.approx((10_000 - 4050) / 500, rel=0.1)

    asyncio.run(scenario())


def test_a_rate_is_forgotten_once_nothing_is_held() -> None:
    now = 0.0

    async def scenario() -> None:
        nonlocal now
        budget = ByteBudget(100, clock=lambda: now)
        await budget.take(10, "slow")
        now = 10.0
        budget.release(10, "slow")
        await budget.take(50, "slow")
        assert budget.expected_wait_s("slow") == 0.0

    asyncio.run(scenario())
