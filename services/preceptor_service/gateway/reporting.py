"""`Reporting`: how much at once is done with what trainers reported, and for how long anybody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from preceptor.errors import UnavailableError
from preceptor_service.runs import ActiveRun

T = TypeVar("T")

MAX_AT_ONCE = 2
"""Runs that are read or written at once: each has all that is known of it in memory, and holds a thread of all."""
PATIENCE_S = 10.0
"""Longest wait of one call, for its turn and for the store together."""


class Reporting:
    """Does blocking work in threads: one piece of a run at a time, and of few runs. Lives on one event loop.

    A thread that the store holds up keeps its turn, whoever waits for it, so that there are never more of them.
    """

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(MAX_AT_ONCE)

    async def do(self, run: ActiveRun, work: Callable[[], T]) -> T:
        """Returns what `work` returns.

        Raises:
            UnavailableError: its turn did not come in time, or the store did not answer; it may yet be done.
            Exception: whatever `work` raises.
        """
        begun: asyncio.Future[T] | None = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                begun = await self._begun(run, work)
                return await asyncio.shield(begun)
        except TimeoutError:
            why = "it was not their turn" if begun is None else "the store did not answer"
            raise UnavailableError(
                f"metrics of run {run.run_id!r} took longer than {PATIENCE_S:g} s: {why}; try again"
            ) from None

    async def _begun(self, run: ActiveRun, work: Callable[[], T]) -> asyncio.Future[T]:
        await run.reporting.acquire()
        try:
            await self._places.acquire()
        except BaseException:
            run.reporting.release()
            raise
        begun = asyncio.get_running_loop().run_in_executor(None, work)
        begun.add_done_callback(lambda _: self._end(run))
        return begun

    def _end(self, run: ActiveRun) -> None:
        self._places.release()
        run.reporting.release()
