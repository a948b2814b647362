"""A micro-batch at a scorer that hangs is handed to another one, within bounds, and answered once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from preceptor.errors import InvalidSuperBatchError
from preceptor_service.scoring.hedging import Hedging
from preceptor_service.scoring.pool import Losses, ScorerLostError, ScorerUnreachableError

AFTER_S = 0.01
ENOUGH_S = 20.0
NEVER = math.inf
DIED, CUT_OFF = ScorerLostError("killed"), ScorerUnreachableError("cut off")


def losses(value: float) -> Losses:
    return Losses(np.array([value], np.float32), None, forward_s=0.0, load_s=0.0)


class Scorers:
    """The n-th that is asked does what the n-th outcome says; the last one stands for all that follow."""

    def __init__(self, *outcomes: Losses | Exception | None) -> None:
        self._outcomes = outcomes
        self.asked = 0
        self.given_up = 0
        self.wake = asyncio.Event()
        self._asks = asyncio.Semaphore(0)

    async def ask(self) -> Losses:
        outcome = self._outcomes[min(self.asked, len(self._outcomes) - 1)]
        self.asked += 1
        self._asks.release()
        if outcome is None:
            try:
                await self.wake.wait()
            except asyncio.CancelledError:
                self.given_up += 1
                raise
            return losses(-1)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def until_asked(self, times: int) -> None:
        """Returns once that many more were asked."""
        for _ in range(times):
            await self._asks.acquire()


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(ENOUGH_S):
            await scenario()

    asyncio.run(in_time())


def test_a_scorer_that_hangs_is_not_waited_for() -> None:
    async def scenario() -> None:
        scorers = Scorers(None, losses(2))
        answer, asked = await Hedging(AFTER_S).first(scorers.ask, NEVER)
        assert answer.learner is not None
        assert (answer.learner[0], asked, scorers.asked) == (2, 2, 2)
        await asyncio.sleep(0)
        assert scorers.given_up == 1

    run(scenario)


def test_an_answer_that_comes_in_good_time_is_asked_for_once() -> None:
    async def scenario() -> None:
        scorers = Scorers(losses(1))
        hedging = Hedging(ENOUGH_S)
        for _ in range(5):
            assert (await hedging.first(scorers.ask, NEVER))[1] == 1
        assert scorers.asked == 5

    run(scenario)


def test_where_there_is_one_scorer_it_is_asked_once_however_long_it_takes() -> None:
    async def scenario() -> None:
        scorers = Scorers(None)
        asking = asyncio.create_task(Hedging(None).first(scorers.ask, NEVER))
        await asyncio.wait({asking}, timeout=10 * AFTER_S)
        assert scorers.asked == 1
        scorers.wake.set()
        assert (await asking)[1] == 1

    run(scenario)


def test_a_second_scorer_that_is_lost_leaves_the_first_to_answer() -> None:
    async def scenario() -> None:
        scorers = Scorers(None, ScorerLostError("killed"))
        asking = asyncio.create_task(Hedging(AFTER_S).first(scorers.ask, NEVER))
        await scorers.until_asked(2)
        scorers.wake.set()
        answer, _ = await asking
        assert answer.learner is not None
        assert answer.learner[0] == -1

    run(scenario)


def test_when_all_that_were_asked_are_lost_it_says_so() -> None:
    async def scenario() -> None:
        with pytest.raises(ScorerLostError):
            await Hedging(AFTER_S).first(Scorers(ScorerLostError("killed")).ask, NEVER)

    run(scenario)


@pytest.mark.parametrize("errors", [[DIED, CUT_OFF], [CUT_OFF, DIED]], ids=["the first held it", "the second held it"])
def test_of_two_that_are_lost_the_one_that_held_the_micro_batch_is_told(errors: list[ScorerLostError]) -> None:
    async def scenario() -> None:
        left, both = errors.copy(), asyncio.Event()

        async def ask() -> Losses:
            error = left.pop(0)
            if not left:
                both.set()
            await both.wait()
            raise error

        with pytest.raises(ScorerLostError) as raised:
            await Hedging(AFTER_S).first(ask, NEVER)
        assert raised.value is DIED

    run(scenario)


def test_an_error_of_a_scorer_is_the_answer() -> None:
    async def scenario() -> None:
        scorers = Scorers(None, InvalidSuperBatchError("wrong"))
        with pytest.raises(InvalidSuperBatchError):
            await Hedging(AFTER_S).first(scorers.ask, NEVER)
        await asyncio.sleep(0)
        assert scorers.given_up == 1

    run(scenario)


def test_scorers_that_all_hang_are_asked_a_bounded_number_of_times() -> None:
    async def scenario() -> None:
        scorers = Scorers(None)
        hedging = Hedging(AFTER_S / 10)
        asking = [asyncio.create_task(hedging.first(scorers.ask, NEVER)) for _ in range(100)]
        await scorers.until_asked(100 + 64)
        await asyncio.wait(asking, timeout=10 * AFTER_S)
        assert scorers.asked == 100 + 64
        scorers.wake.set()
        await asyncio.gather(*asking)

    run(scenario)


def test_where_scorers_are_slow_the_others_are_not_asked_sooner_than_four_times_as_long() -> None:
    async def scenario() -> None:
        hedging = Hedging(AFTER_S / 10)

        async def slow() -> Losses:
            await asyncio.sleep(50 * AFTER_S)
            return losses(1)

        await hedging.first(slow, NEVER)
        scorers = Scorers(None)
        asking = asyncio.create_task(hedging.first(scorers.ask, NEVER))
        await asyncio.wait({asking}, timeout=50 * AFTER_S)
        assert scorers.asked == 1
        scorers.wake.set()
        await asking

    run(scenario)


def test_where_scorers_are_slow_another_one_is_asked_while_there_is_time() -> None:
    async def scenario() -> None:
        hedging = Hedging(ENOUGH_S)
        scorers = Scorers(None, losses(2))
        answer, asked = await hedging.first(scorers.ask, asyncio.get_running_loop().time() + 20 * AFTER_S)
        assert answer.learner is not None
        assert (answer.learner[0], asked) == (2, 2)

    run(scenario)


def test_the_end_of_the_time_asks_no_third_scorer() -> None:
    async def scenario() -> None:
        scorers = Scorers(None)
        asking = asyncio.create_task(
            Hedging(ENOUGH_S).first(scorers.ask, asyncio.get_running_loop().time() + 2 * AFTER_S)
        )
        await asyncio.wait({asking}, timeout=10 * AFTER_S)
        assert scorers.asked == 2
        scorers.wake.set()
        await asking

    run(scenario)


def test_giving_up_gives_up_every_attempt() -> None:
    async def scenario() -> None:
        scorers = Scorers(None)
        asking = asyncio.create_task(Hedging(AFTER_S).first(scorers.ask, NEVER))
        await scorers.until_asked(2)
        asking.cancel()
        await asyncio.wait({asking})
        await asyncio.sleep(0)
        assert scorers.given_up == scorers.asked

    run(scenario)
