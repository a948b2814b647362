from __future__ import annotations

import asyncio
import gc
import pickle
import weakref
from typing import Any

import numpy as np

from preceptor_service.byte_budget import ByteBudget
from preceptor_service.scoring.pool import Losses, MicroBatch, ScoringModels
from preceptor_service.scoring.ray_pool import RayPool

MODELS = ScoringModels("run", "classification", None, None)
LOSSES = Losses(np.zeros(2, np.float32), None, 0.0, 0.0)


class HoardingHandle:
    """A deployment handle that keeps every argument, as Serve's router may, and that delivers by pickling."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.delivered: list[Any] = []
        self.losses = self

    def remote(self, models: ScoringModels, batch: Any, waiting: tuple[str, int]) -> asyncio.Future[Losses]:
        self.kept.append(batch)
        self.delivered.append(pickle.loads(pickle.dumps(batch)))
        answer: asyncio.Future[Losses] = asyncio.get_running_loop().create_future()
        answer.set_result(LOSSES)
        return answer


async def ask(handle: HoardingHandle, column: np.ndarray) -> Losses:
    pool = RayPool(handle, ByteBudget(1), load_timeout_s=1.0)  # type: ignore[arg-type]
    return await pool.losses(MODELS, MicroBatch({"x": column}, 2))


def test_a_scorer_gets_the_micro_batch_itself() -> None:
    handle = HoardingHandle()
    assert asyncio.run(ask(handle, np.arange(4))) is LOSSES
    (batch,) = handle.delivered
    assert isinstance(batch, MicroBatch)
    assert batch.columns["x"].tolist() == [0, 1, 2, 3]
    assert batch.row_count == 2


def test_an_answered_micro_batch_is_let_go_even_where_the_router_keeps_the_request() -> None:
    handle = HoardingHandle()
    column = np.arange(4)
    alive = weakref.ref(column)
    asyncio.run(ask(handle, column))
    del column
    gc.collect()
    assert handle.kept
    assert alive() is None
