"""`GatewayWatch`: what a gateway looks at now and then, for its metrics: its scorers, its store, its own queues."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Generic, TypeVar

from preceptor_service.byte_budget import ByteBudget
from preceptor_service.config import ServiceConfig
from preceptor_service.metrics import GatewayMetrics
from preceptor_service.scoring.pool import ScorerPool
from preceptor_service.weight_store import WeightStore

logger = logging.getLogger(__name__)

_PERIOD_S = 5.0
_TIMEOUT_S = 5.0

T = TypeVar("T")


class _Look(Generic[T]):
    """A look at something that may hang, on a thread of its own: it holds up nothing else, and never runs twice."""

    def __init__(self, look: Callable[[], T | None]) -> None:
        self._look = look
        self._told: Future[T | None] | None = None

    async def __call__(self) -> T | None:
        """Returns what is seen; None where the look fails, or is not done after 5 s."""
        if self._told is None or self._told.done():
            self._told = Future()
            threading.Thread(target=self._tell, args=(self._told,), name="watch", daemon=True).start()
        told = asyncio.wrap_future(self._told)
        done, _ = await asyncio.wait({told}, timeout=_TIMEOUT_S)
        return told.result() if done else None

    def _tell(self, told: Future[T | None]) -> None:
        try:
            told.set_result(self._look())
        except Exception:
            logger.exception("a look at the service failed; it is tried again")
            told.set_result(None)


class GatewayWatch:
    """Shows what no call brings along. Owns two tasks, from `start` to `stop`."""

    def __init__(
        self,
        config: ServiceConfig,
        pool: ScorerPool,
        weight_store: WeightStore,
        in_flight: ByteBudget,
        bodies: ByteBudget,
        metrics: GatewayMetrics,
    ) -> None:
        self._scorers = _Look(pool.deployed)
        self._store = _Look(weight_store.probe)
        self._metrics = metrics
        self._deployments: set[str] = set()
        self._watching: list[asyncio.Task[None]] = []
        version = importlib.metadata.version("preceptor")
        metrics.build_info.labels(version, config.digest).set(1)
        metrics.max_streams.set(config.gateway.max_streams)
        metrics.micro_batch_limit_bytes.set(in_flight.limit_bytes)
        metrics.micro_batch_bytes.set_function(lambda: in_flight.held_bytes)
        metrics.micro_batches_waiting.set_function(lambda: in_flight.waiting)
        metrics.bodies_waiting.set_function(lambda: bodies.waiting)

    def start(self) -> None:
        """Begins to look."""
        self._watching = [asyncio.create_task(watch()) for watch in (self._watch_scorers, self._watch_store)]

    async def stop(self) -> None:
        """Ends that; a look that hangs is left to itself."""
        for task in self._watching:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _watch_scorers(self) -> None:
        while True:
            deployed = await self._scorers()
            # Where nobody tells, nothing is shown rather than what was true a while ago.
            self._metrics.scorers.labels("target").set(math.nan if deployed is None else deployed.target)
            self._metrics.scorers.labels("running").set(math.nan if deployed is None else deployed.running)
            updating = {} if deployed is None else deployed.updating
            self._deployments.update(updating)
            for deployment in self._deployments:
                self._metrics.deployment_updating.labels(deployment).set(updating.get(deployment, math.nan))
            await asyncio.sleep(_PERIOD_S)

    async def _watch_store(self) -> None:
        while True:
            health = await self._store()
            self._metrics.store_up.set(health is not None and health.is_writable)
            if health is not None and health.free_bytes is not None:
                self._metrics.store_free_bytes.set(health.free_bytes)
            await asyncio.sleep(_PERIOD_S)
