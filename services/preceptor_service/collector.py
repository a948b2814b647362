"""`Collector`: has what expired in the store of weights removed, beside everything else. Called by `RunRegistry`."""

from __future__ import annotations

import asyncio
import logging

from preceptor_service.weight_store import WeightStore

_PAUSE_S = 30.0
"""Between collections: each reads every manifest."""

logger = logging.getLogger(__name__)


class Collector:
    """Collects until what was made superfluous is old enough to be removed. Lives on one event loop.

    Args:
        weight_store: what is collected.
        grace_s: how long it keeps what expired.
    """

    def __init__(self, weight_store: WeightStore, grace_s: float) -> None:
        self._weight_store = weight_store
        self._grace_s = grace_s
        self._until = 0.0
        self._task: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """Is called where versions or runs expired, or room is wanted; never waits."""
        self._until = asyncio.get_running_loop().time() + self._grace_s
        if self._task is None:
            self._task = asyncio.create_task(self._collect())

    async def stop(self) -> None:
        """Begins no other collection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _collect(self) -> None:
        try:
            began = -1.0
            while began <= self._until:
                began = asyncio.get_running_loop().time()
                try:
                    await asyncio.to_thread(self._weight_store.collect)
                except Exception:
                    logger.exception("what expired in the store was not removed; it is tried again")
                await asyncio.sleep(_PAUSE_S)
        finally:
            self._task = None
