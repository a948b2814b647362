"""`Upload`: the staging file of one push, removed in the end whatever becomes of the call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from preceptor_service.weight_staging import Staged
from preceptor_service.weight_store import WeightStore

P = ParamSpec("P")
T = TypeVar("T")

_removals: set[asyncio.Task[None]] = set()  # the event loop itself keeps no task alive


class Upload:
    """An asynchronous context manager around `WeightStore.stage`.

    A call can be cancelled at any await, also a second time while it cleans up. The threads that hold the
    file are then waited for by a task of its own, which removes the file after the last of them.
    """

    def __init__(self, weight_store: WeightStore, total_bytes: int) -> None:
        self._weight_store = weight_store
        self._total_bytes = total_bytes
        self._staged: Staged | None = None
        self._work: asyncio.Task[Any] | None = None

    async def __aenter__(self) -> Upload:
        try:
            await self.do(self._stage)
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._leave()

    @property
    def staged(self) -> Staged:
        """The file."""
        if self._staged is None:
            raise RuntimeError("the upload was not entered")
        return self._staged

    async def do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs blocking `work` on the file in a thread; one at a time."""
        task = self._work = asyncio.create_task(asyncio.to_thread(work, *args, **kwargs))
        return await asyncio.shield(task)

    def _stage(self) -> None:
        self._staged = self._weight_store.stage(self._total_bytes)

    async def _leave(self) -> None:
        removal = asyncio.create_task(self._remove())
        _removals.add(removal)
        removal.add_done_callback(_removals.discard)
        await asyncio.shield(removal)

    async def _remove(self) -> None:
        if self._work is not None:
            await asyncio.wait({self._work})
            self._work.exception()  # whoever awaited it was told, or is gone
        if self._staged is not None:
            await asyncio.to_thread(self._staged.close)
