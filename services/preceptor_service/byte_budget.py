"""A bound in bytes on work in progress, fair between those who hold it."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

_Turn = tuple[int, "asyncio.Future[None]"]

_MEASURE_S = 0.25
"""How long a holder is looked at before its rate counts as known."""
_HALF_LIFE_S = 2.0
"""How fast what was released before loses its weight."""


class ByteBudget:
    """Lets at most `limit` bytes be held at once. For one event loop; not thread-safe.

    Of those who wait, whoever holds least is next; the turns of one holder come in the order asked. Something larger
    than the whole limit is let in alone, so nothing waits for ever.

    Args:
        limit: in bytes.
        leaves_room: whether a holder that holds something takes at most as much as it leaves free: alone half of the
            limit, two a third each. So one that never releases does not keep the others out.
        clock: seconds that only grow.
    """

    def __init__(self, limit: int, leaves_room: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._leaves_room = leaves_room
        self._held = 0
        self._held_by: Counter[str] = Counter()
        self._waiting: dict[str, deque[_Turn]] = {}
        self._clock = clock
        self._rates: dict[str, _Rate] = {}

    @property
    def held_bytes(self) -> int:
        """Bytes held now."""
        return self._held

    @property
    def limit_bytes(self) -> int:
        """Bytes that may be held."""
        return self._limit

    @property
    def waiting(self) -> int:
        """How many wait to hold some."""
        return sum(map(len, self._waiting.values()))

    def has_room(self, count: int, holder: str) -> bool:
        """Whether `holder` would get `count` bytes without waiting."""
        return not self._waiting and self._fits(count, holder)

    def expected_wait_s(self, holder: str) -> float:
        """Returns how long what `holder` holds and waits for takes to be released, at its own rate of late.

        0 where that is nothing, or the rate is not known: it is measured anew after each time of holding nothing.
        """
        if holder not in self._rates:
            return 0.0
        waiting = sum(count for count, _ in self._waiting.get(holder, ()))
        return self._rates[holder].seconds_for(self._held_by[holder] + waiting)

    @asynccontextmanager
    async def hold(self, count: int, holder: str = "") -> AsyncIterator[None]:
        """Waits until `count` bytes fit, and holds them inside the block."""
        await self.take(count, holder)
        try:
            yield
        finally:
            self.release(count, holder)

    async def take(self, count: int, holder: str = "") -> None:
        """Waits until `count` bytes fit, and holds them until they are released."""
        if self.has_room(count, holder):
            self._grant(count, holder)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(holder, deque()).append((count, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(count, holder)
            else:
                with suppress(ValueError):  # `_admit` passed it already
                    self._waiting.get(holder, deque()).remove((count, turn))
                self._admit()
            raise

    def release(self, count: int, holder: str = "") -> None:
        """Gives back what was taken."""
        self._rates[holder].count(count)
        self._held -= count
        self._held_by[holder] -= count
        self._admit()
        if not self._held_by[holder]:
            del self._held_by[holder], self._rates[holder]

    def _fits(self, count: int, holder: str) -> bool:
        own = self._held_by[holder]
        free = self._limit - self._held
        return self._held == 0 or (count <= free and not self._is_share_spent(count, own, free))

    def _is_share_spent(self, count: int, own: int, free: int) -> bool:
        return self._leaves_room and own > 0 and own + count > free

    def _grant(self, count: int, holder: str) -> None:
        if holder not in self._rates:
            self._rates[holder] = _Rate(self._clock)
        self._held += count
        self._held_by[holder] += count

    def _admit(self) -> None:
        while (holder := self._next()) is not None:
            count, turn = self._waiting[holder].popleft()
            self._grant(count, holder)
            turn.set_result(None)

    def _next(self) -> str | None:
        """Returns whose turn comes now, if anybody's."""
        # A waiter that was cancelled runs later than whoever releases in the same tick.
        for holder, turns in list(self._waiting.items()):
            while turns and turns[0][1].cancelled():
                turns.popleft()
            if not turns:
                del self._waiting[holder]
        for holder in sorted(self._waiting, key=lambda holder: self._held_by[holder]):
            count, _ = self._waiting[holder][0]
            if self._fits(count, holder):
                return holder
            if not self._is_share_spent(count, self._held_by[holder], self._limit - self._held):
                return None  # nobody who holds more overtakes, or what is large would wait for ever
        return None


class _Rate:
    """Bytes per second that one holder releases, as a mean over time that fades.

    From its first release on: what comes before is the way there and back, and where a scorer had no weights yet, their
    load. Counted in, it would have a crowd that meets a new gateway refused for long.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = self._last = math.inf
        self._bytes = 0.0
        self._seconds = 0.0

    def count(self, released: int) -> None:
        """Counts what was released."""
        if self._began == math.inf:
            self._began = self._last = self._clock()
            return
        self._fade()
        self._bytes += released

    def seconds_for(self, held: int) -> float:
        """Returns how long so many bytes take; 0 where too little was released yet, or too short a time looked at."""
        if not self._bytes or self._clock() - self._began < _MEASURE_S:
            return 0.0
        self._fade()
        return held * self._seconds / self._bytes

    def _fade(self) -> None:
        now = self._clock()
        kept = 0.5 ** ((now - self._last) / _HALF_LIFE_S)
        self._last = now
        self._bytes *= kept
        self._seconds = self._seconds * kept + (1 - kept) * _HALF_LIFE_S / math.log(2)
