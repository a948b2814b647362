"""What a gateway shows of scorers and store while one of them hangs."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest

from preceptor_service.byte_budget import ByteBudget
from preceptor_service.config import ServiceConfig
from preceptor_service.gateway import watch
from preceptor_service.gateway.watch import GatewayWatch
from preceptor_service.metrics import GatewayMetrics
from preceptor_service.scoring.pool import Deployed, ScorerPool
from preceptor_service.storage import StoreHealth
from preceptor_service.weight_store import WeightStore
from tests.service.conftest import wait_until


class Watched:
    """Scorers and a store that tell how they are, or hang."""

    def __init__(self) -> None:
        self.running = 2
        self.may_tell_scorers, self.may_tell_store = threading.Event(), threading.Event()
        self.may_tell_scorers.set()
        self.may_tell_store.set()
        self.looks = 0

    def deployed(self) -> Deployed | None:
        self.looks += 1
        self.may_tell_scorers.wait(30)
        return Deployed(target=2, running=self.running, updating={"Scorer": self.running < 2})

    def probe(self) -> StoreHealth:
        self.may_tell_store.wait(30)
        return StoreHealth(is_writable=True, free_bytes=5)


@pytest.fixture
def metrics() -> GatewayMetrics:
    return GatewayMetrics()


@asynccontextmanager
async def watching(watched: Watched, metrics: GatewayMetrics) -> AsyncIterator[None]:
    """Watches until the end, and lets what hangs go on then."""
    pool, store = cast(ScorerPool, watched), cast(WeightStore, watched)
    gateway = GatewayWatch(ServiceConfig(), pool, store, ByteBudget(1), ByteBudget(1), metrics)
    gateway.start()
    try:
        yield
    finally:
        watched.may_tell_scorers.set()
        watched.may_tell_store.set()
        await gateway.stop()


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, condition, "the gauges showed it")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_PERIOD_S", 0.02)
    monkeypatch.setattr(watch, "_TIMEOUT_S", 0.05)


def test_a_store_that_hangs_is_down_and_hides_no_scorer_that_dies(metrics: GatewayMetrics) -> None:
    def shown(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"preceptor_{name}", labels)

    async def scenario() -> None:
        watched = Watched()
        async with watching(watched, metrics):
            await until(lambda: (shown("store_up"), shown("scorers", state="running")) == (1, 2))
            watched.may_tell_store.clear()
            await until(lambda: shown("store_up") == 0)
            watched.running = 0
            await until(lambda: shown("scorers", state="running") == 0)
            watched.may_tell_store.set()
            await until(lambda: shown("store_up") == 1)

    asyncio.run(scenario())


def test_a_controller_that_hangs_costs_one_thread_and_leaves_no_old_number(metrics: GatewayMetrics) -> None:
    def shown(name: str, **labels: str) -> float:
        value = metrics.registry.get_sample_value(f"preceptor_{name}", labels)
        return -1 if value is None else value

    async def scenario() -> None:
        watched = Watched()
        async with watching(watched, metrics):
            await until(lambda: shown("deployment_updating", deployment="Scorer") == 0)
            watched.may_tell_scorers.clear()
            await until(lambda: math.isnan(shown("scorers", state="running")))
            assert math.isnan(shown("deployment_updating", deployment="Scorer"))
            looks = watched.looks
            for _ in range(50):  # of what waits for a thread, nothing waits for the one that hangs
                assert await asyncio.to_thread(lambda: True)
                await asyncio.sleep(0.02)
            assert watched.looks == looks
            watched.may_tell_scorers.set()
            await until(lambda: shown("scorers", state="running") == 2)

    asyncio.run(scenario())
