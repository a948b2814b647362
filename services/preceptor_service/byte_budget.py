"""A bound in bytes on work in progress, first come first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class ByteBudget:
    """Lets at most `limit` bytes be held at once. For one event loop; not thread-safe.

    Something larger than the whole limit is let in alone, so nothing waits for ever.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

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
        return len(self._waiting)

    @asynccontextmanager
    async def hold(self, count: int) -> AsyncIterator[None]:
        """Waits until `count` bytes fit, and holds them inside the block."""
        if self._waiting or not self._fits(count):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((count, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._release(count)
                else:
                    with suppress(ValueError):  # `_admit` passed it already
                        self._waiting.remove((count, turn))
                    self._admit()
                raise
        else:
            self._held += count
        try:
            yield
        finally:
            self._release(count)

    def _fits(self, count: int) -> bool:
        return self._held == 0 or self._held + count <= self._limit

    def _release(self, count: int) -> None:
        self._held -= count
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            count, turn = self._waiting[0]
            # A waiter that was cancelled runs later than whoever releases in the same tick.
            if not turn.cancelled() and not self._fits(count):
                return
            self._waiting.popleft()
            if not turn.cancelled():
                self._held += count
                turn.set_result(None)
