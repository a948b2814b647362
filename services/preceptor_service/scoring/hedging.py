"""Hedging: a micro-batch that is not answered in good time is handed to another scorer, too.

A scorer that hangs does not say so. The first answer is taken; what comes later belongs to an attempt that nobody
waits for any more. Called by the pipeline, on its event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from statistics import median
from typing import Any

from preceptor_service.scoring.pool import Losses, ScorerLostError, ScorerUnreachableError

_TIMES_THE_MEDIAN = 4.0
_REMEMBERED = 16
_SHARE = 0.05
_AT_ONCE = 64.0


class Hedging:
    """Decides when a second scorer is asked, and takes the first answer.

    Not before `after_s`, nor before four times what the latest 16 answers took (their median, without loads of
    weights): where all scorers are slow, asking twice would make them slower. But the first time no later than
    after half of the time that is left: a second scorer needs the rest. Second questions are at most one in
    twenty micro-batches, and 64 at once: 16 were too few for 16 trainers (`make prove-chaos`).

    Args:
        after_s: seconds; None: never, where there is only one scorer.
    """

    def __init__(self, after_s: float | None) -> None:
        self._after_s = after_s
        self._took_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._left = _AT_ONCE

    async def first(self, ask: Callable[[], Coroutine[Any, Any, Losses]], deadline: float) -> tuple[Losses, int]:
        """Returns the first losses that a scorer gives, and how many were asked. Attempts that are late are cancelled.

        Does not end at the deadline by itself.

        Args:
            ask: asks one scorer.
            deadline: when the answer is of no use any more, on the event loop's clock.

        Raises:
            ScorerLostError: every scorer that was asked was lost; told is one that held the micro-batch, if any did.
            Exception: what the first attempt raised that raised anything else.
        """
        attempts: dict[asyncio.Task[Losses], float] = {}
        lost: ScorerLostError | None = None
        try:
            attempts[asyncio.create_task(ask())] = time.perf_counter()
            asked = 1
            while True:
                left_s = deadline - asyncio.get_running_loop().time() if asked == 1 else math.inf
                done, _ = await asyncio.wait(
                    attempts, timeout=self._patience_s(left_s), return_when=asyncio.FIRST_COMPLETED
                )
                for attempt in done:
                    began = attempts.pop(attempt)
                    try:
                        losses = attempt.result()
                    except ScorerLostError as error:
                        lost = error if lost is None or isinstance(lost, ScorerUnreachableError) else lost
                        if attempts:
                            continue
                        raise lost from None
                    self._answered(time.perf_counter() - began - losses.load_s)
                    return losses, asked
                if not done and self._left >= 1:
                    self._left -= 1
                    attempts[asyncio.create_task(ask())] = time.perf_counter()
                    asked += 1
        finally:
            for attempt in attempts:
                attempt.add_done_callback(_drop)
                attempt.cancel()

    def _patience_s(self, left_s: float) -> float | None:
        if self._after_s is None:
            return None
        as_usual_s = max(self._after_s, _TIMES_THE_MEDIAN * (median(self._took_s) if self._took_s else 0.0))
        return min(as_usual_s, max(left_s, 0.0) / 2)

    def _answered(self, took_s: float) -> None:
        self._took_s.append(took_s)
        self._left = min(_AT_ONCE, self._left + _SHARE)


def _drop(late: asyncio.Task[Losses]) -> None:
    """Looks at an attempt that nobody waits for: asyncio complains of exceptions that nobody saw."""
    with suppress(asyncio.CancelledError):
        late.exception()
