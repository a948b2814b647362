"""`InProcessPool`: one scoring engine in the process of its caller, for notebooks, tests and machines without Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from preceptor.errors import PreceptorError, ScorersUnavailableError
from preceptor_service.scoring.engine import ScoringEngine
from preceptor_service.scoring.failures import failure, is_of_one_scorer
from preceptor_service.scoring.pool import Deployed, LoadReport, Losses, MicroBatch, ScoringModels, Trained, Training

T = TypeVar("T")

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 30.0


class InProcessPool:
    """A `ScorerPool` of one scorer. Owns three threads: one scores, one loads weights meanwhile, one trains.

    How many micro-batches wait is bounded by who calls, with its budget of bytes in flight.
    """

    def __init__(self, engine: ScoringEngine) -> None:
        self._engine = engine
        self._scoring = ThreadPoolExecutor(1, "preceptor-scoring")
        self._loading = ThreadPoolExecutor(1, "preceptor-loading")
        self._training = ThreadPoolExecutor(1, "preceptor-training")
        self._is_closed = False

    async def losses(self, models: ScoringModels, batch: MicroBatch) -> Losses:
        """Scores one micro-batch; see `ScorerPool.losses`. Models that are not held load first, beside scoring.

        Raises:
            ScorersUnavailableError: the pool is closed.
            ScorerFailedError: what went wrong is no fault of the micro-batch's, as far as one can tell.
            PreceptorError: as `ScoringEngine.losses`.
        """
        load_s = 0.0
        with _failures_told(models.run_id):
            if not self._engine.holds(models):
                started = time.perf_counter()
                await self._run(self._loading, lambda: self._engine.load(models))
                load_s = time.perf_counter() - started
            losses = await self._run(self._scoring, lambda: self._engine.losses(models, batch))
        return replace(losses, load_s=load_s + losses.load_s)

    async def train(self, training: Training) -> Trained:
        """Trains one block; see `ScorerPool.train`.

        Raises:
            ScorersUnavailableError: the pool is closed.
            ScorerFailedError: as `losses`.
            PreceptorError, FileNotFoundError: as `ScoringEngine.train`.
        """
        with _failures_told(training.run_id, FileNotFoundError):
            return await self._run(self._training, lambda: self._engine.train(training))

    async def load(self, models: ScoringModels) -> LoadReport:
        """Loads the models; see `ScorerPool.load`. What went wrong is logged, and raised when they score.

        Raises:
            ScorersUnavailableError: the pool is closed.
        """
        try:
            await self._run(self._loading, lambda: self._engine.load(models))
        except ScorersUnavailableError:
            raise
        except (PreceptorError, OSError, RuntimeError) as error:
            logger.warning("run %s: weights are not loaded: %s", models.run_id, error)
            return LoadReport(loaded=0, asked=1)
        return LoadReport(loaded=1, asked=1)

    def deployed(self) -> Deployed:
        """Tells that there is one scorer, until the pool is closed."""
        return Deployed(target=1, running=int(not self._is_closed), updating={})

    async def close(self) -> None:
        """Waits for the work under way, for at most half a minute, and drops what was queued. Safe to repeat."""
        self._is_closed = True
        executors = (self._scoring, self._loading, self._training)
        for executor in executors:
            executor.shutdown(wait=False, cancel_futures=True)
        ended = [asyncio.to_thread(executor.shutdown) for executor in executors]
        await asyncio.wait_for(asyncio.gather(*ended), _CLOSE_TIMEOUT_S)

    async def _run(self, executor: Executor, work: Callable[[], T]) -> T:
        if self._is_closed:
            raise ScorersUnavailableError("the in-process scorer is closed; start the service again")
        return await asyncio.get_running_loop().run_in_executor(executor, work)


@contextmanager
def _failures_told(run_id: str, *expected: type[Exception]) -> Iterator[None]:
    """Within it what is this scorer's fault is a `ScorerFailedError`, so that another one is asked."""
    try:
        yield
    except expected:
        raise
    except Exception as error:
        if not is_of_one_scorer(error):
            raise
        raise failure(error, run_id) from error
