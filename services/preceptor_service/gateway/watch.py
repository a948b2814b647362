"""`GatewayWatch`: what a gateway looks at now and then, for its metrics: its scorers, its store, its own queues."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import math
from contextlib import suppress

from preceptor_service.byte_budget import ByteBudget
from preceptor_service.config import ServiceConfig
from preceptor_service.metrics import GatewayMetrics
from preceptor_service.scoring.pool import ScorerPool
from preceptor_service.weight_store import WeightStore

logger = logging.getLogger(__name__)

_PERIOD_S = 5.0


class GatewayWatch:
    """Shows what no call brings along. Owns one task, from `start` to `stop`."""

    def __init__(
        self,
        config: ServiceConfig,
        pool: ScorerPool,
        weight_store: WeightStore,
        in_flight: ByteBudget,
        metrics: GatewayMetrics,
    ) -> None:
        self._pool = pool
        self._weight_store = weight_store
        self._metrics = metrics
        self._watching: asyncio.Task[None] | None = None
        version = importlib.metadata.version("preceptor")
        metrics.build_info.labels(version, config.digest).set(1)
        metrics.max_streams.set(config.gateway.max_streams)
        metrics.micro_batch_limit_bytes.set(in_flight.limit_bytes)
        metrics.micro_batch_bytes.set_function(lambda: in_flight.held_bytes)
        metrics.micro_batches_waiting.set_function(lambda: in_flight.waiting)

    def start(self) -> None:
        """Begins to look."""
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Ends that."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching

    async def _watch(self) -> None:
        while True:
            for look in (self._look_at_scorers, self._look_at_store):
                try:
                    await look()
                except Exception:
                    logger.exception("a look at the service failed; it is tried again in %g s", _PERIOD_S)
            await asyncio.sleep(_PERIOD_S)

    async def _look_at_scorers(self) -> None:
        deployed = await self._pool.deployed()
        # Where nobody tells, nothing is shown rather than what was true a while ago.
        self._metrics.scorers.labels("target").set(math.nan if deployed is None else deployed.target)
        self._metrics.scorers.labels("running").set(math.nan if deployed is None else deployed.running)
        for deployment, is_updating in ({} if deployed is None else deployed.updating).items():
            self._metrics.deployment_updating.labels(deployment).set(is_updating)

    async def _look_at_store(self) -> None:
        health = await asyncio.to_thread(self._weight_store.probe)
        self._metrics.store_up.set(health.is_writable)
        if health.free_bytes is not None:
            self._metrics.store_free_bytes.set(health.free_bytes)
