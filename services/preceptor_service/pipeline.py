"""The pipeline: from a super-batch to the indices worth training on.

Reads like Algorithm 1 of Evans et al. (arXiv 2312.05328), for any number of super-batches at once:
pin one learner version, score every candidate under learner copy and reference, draw the sub-batch.
Called by the gateway; knows neither gRPC nor Ray nor torch.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from preceptor.errors import DeadlineExceededError, InvalidSuperBatchError
from preceptor_service import selectors
from preceptor_service.byte_budget import ByteBudget
from preceptor_service.randomness import uniforms
from preceptor_service.runs import ActiveRun, Pinned, RunRegistry
from preceptor_service.scoring.pool import Losses, MicroBatch, ScorerLostError, ScorerPool, ScoringModels
from preceptor_service.super_batch import Body, SuperBatch, decode

_RESCORE_WAIT_S = (0.0, 0.1, 0.3, 1.0)


@dataclass
class Stages:
    """Seconds spent on one super-batch, by stage, and how many of its micro-batches were rescored."""

    decode_s: float = 0.0
    losses_s: float = 0.0
    select_s: float = 0.0
    forward_s: float = 0.0
    rescored_micro_batches: int = 0


@dataclass(frozen=True)
class Ask:
    """One super-batch as it arrived: its place in the run, its body, and when it must be answered.

    `deadline` is in seconds of the event loop's clock.
    """

    step: int
    rank: int
    rows: int
    sub_batch_size: int
    body: Body
    deadline: float


@dataclass(frozen=True)
class Scored:
    """Losses and scores of B candidates: float32 `[B]`, losses None where the rule needs none."""

    learner_losses: NDArray[np.float32] | None
    reference_losses: NDArray[np.float32] | None
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class Selected:
    """The sub-batch: int64 `[b]` positions in the order drawn, and the float32 `[B]` scores behind it.

    `scores` is empty where `is_fallback`: then nothing was scored and the draw was uniform.
    """

    indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    pinned: Pinned
    is_fallback: bool
    non_finite_count: int
    stages: Stages = field(default_factory=Stages)


class Pipeline:
    """Selects sub-batches for every run of one gateway, on one event loop."""

    def __init__(
        self, runs: RunRegistry, pool: ScorerPool, in_flight: ByteBudget, micro_batch_timeout_s: float
    ) -> None:
        self._runs = runs
        self._pool = pool
        self._in_flight = in_flight
        self._micro_batch_timeout_s = micro_batch_timeout_s

    async def pin(self, run: ActiveRun, step: int, observed_version: int, deadline: float) -> Pinned:
        """Names the one learner version behind the answer to `step`, at least `observed_version`.

        Called in the order in which a trainer's super-batches arrived, so that versions never go
        back. Waits for fresher weights, until `deadline`, where the run says so.

        Raises:
            WeightsMissingError: the score rule needs weights that were never pushed.
        """
        pinned = await self._runs.pin(run, step, observed_version)
        while pinned.is_too_stale and run.spec.on_stale == "wait":
            if not await self._runs.wait_for_push(run, deadline):
                break
            pinned = await self._runs.pin(run, step, observed_version)
        return pinned

    async def select(self, run: ActiveRun, pinned: Pinned, ask: Ask) -> Selected:
        """Answers one super-batch (Algorithm 1, lines 4 to 6).

        Raises:
            InvalidSuperBatchError: the body or `sub_batch_size` does not fit the run.
            NonFiniteScoresError: fewer finite scores than `sub_batch_size`.
            DeadlineExceededError: not scored in time, and the run does not fall back.
        """
        stages = Stages()
        super_batch = await self._decode(run, ask, stages)
        if not 1 <= ask.sub_batch_size <= super_batch.rows:
            raise InvalidSuperBatchError(
                f"sub_batch_size is {ask.sub_batch_size}; choose from 1 to the {super_batch.rows} candidates offered"
            )
        if pinned.is_too_stale and run.spec.on_stale == "uniform":
            return self._fall_back(run, pinned, ask, stages)
        try:
            async with asyncio.timeout_at(ask.deadline):
                if pinned.is_too_stale and run.spec.on_stale == "wait":
                    raise TimeoutError
                scored = await self._score(run, pinned, super_batch, stages)
        except TimeoutError as error:
            if run.spec.on_deadline == "uniform":
                return self._fall_back(run, pinned, ask, stages)
            raise DeadlineExceededError(_why_late(run, pinned, ask)) from error

        started = time.perf_counter()
        noise = uniforms(run.spec.seed, run.run_id, ask.step, ask.rank, super_batch.rows)
        indices = await asyncio.to_thread(run.selector, scored.scores, ask.sub_batch_size, noise, run.spec.temperature)
        stages.select_s += time.perf_counter() - started
        non_finite = super_batch.rows - int(np.count_nonzero(np.isfinite(scored.scores)))
        return Selected(indices, scored.scores, pinned, False, non_finite, stages)

    async def score(self, run: ActiveRun, pinned: Pinned, ask: Ask) -> tuple[Scored, Stages]:
        """Scores one super-batch and selects nothing.

        Raises:
            InvalidSuperBatchError: the body does not fit the run.
            DeadlineExceededError: not scored in time.
        """
        stages = Stages()
        super_batch = await self._decode(run, ask, stages)
        try:
            async with asyncio.timeout_at(ask.deadline):
                return await self._score(run, pinned, super_batch, stages), stages
        except TimeoutError as error:
            raise DeadlineExceededError(_why_late(run, pinned, ask)) from error

    async def _decode(self, run: ActiveRun, ask: Ask, stages: Stages) -> SuperBatch:
        started = time.perf_counter()
        super_batch = await asyncio.to_thread(decode, ask.body, run.columns, ask.rows)
        stages.decode_s = time.perf_counter() - started
        return super_batch

    async def _score(self, run: ActiveRun, pinned: Pinned, super_batch: SuperBatch, stages: Stages) -> Scored:
        losses = await self._losses(pinned.models, super_batch, run.micro_batch_rows, stages)
        started = time.perf_counter()
        learner = _joined([part.learner for part in losses])
        reference = _joined([part.reference for part in losses])
        scores = run.rule(super_batch.rows, learner, reference)
        stages.select_s = time.perf_counter() - started
        return Scored(learner, reference, scores)

    async def _losses(
        self, models: ScoringModels, super_batch: SuperBatch, micro_batch_rows: int, stages: Stages
    ) -> list[Losses]:
        if models.learner is None and models.reference is None:
            return []
        started = time.perf_counter()
        tasks = [
            asyncio.create_task(self._losses_of(models, micro_batch, stages))
            for micro_batch in super_batch.micro_batches(micro_batch_rows)
        ]
        try:
            losses = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        stages.losses_s = time.perf_counter() - started
        stages.forward_s = sum(part.forward_s for part in losses)
        return losses

    async def _losses_of(self, models: ScoringModels, micro_batch: MicroBatch, stages: Stages) -> Losses:
        """Scores one micro-batch, again and elsewhere where a scorer is lost; the deadline ends it."""
        attempt = 0
        while True:
            async with self._in_flight.hold(micro_batch.nbytes):
                try:
                    async with asyncio.timeout(self._micro_batch_timeout_s):
                        return await self._pool.losses(models, micro_batch)
                except (ScorerLostError, TimeoutError):
                    stages.rescored_micro_batches += 1
            await asyncio.sleep(_RESCORE_WAIT_S[min(attempt, len(_RESCORE_WAIT_S) - 1)])
            attempt += 1

    def _fall_back(self, run: ActiveRun, pinned: Pinned, ask: Ask, stages: Stages) -> Selected:
        noise = uniforms(run.spec.seed, run.run_id, ask.step, ask.rank, ask.rows)
        indices = selectors.uniform(np.zeros(ask.rows, np.float32), ask.sub_batch_size, noise, 1.0)
        return Selected(indices, np.empty(0, np.float32), pinned, True, 0, stages)


def _joined(parts: list[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    present = [part for part in parts if part is not None]
    return np.concatenate(present) if present else None


def _why_late(run: ActiveRun, pinned: Pinned, ask: Ask) -> str:
    if pinned.is_too_stale:
        return (
            f"step {ask.step} waited for fresher weights: the learner copy is {pinned.staleness_steps} steps old, "
            f"max_staleness_steps is {run.spec.max_staleness_steps}; push weights more often or raise the bound"
        )
    return (
        f"step {ask.step} was not scored within {run.deadline_s:g} s; add scorers, raise deadline_s, "
        'or set on_deadline="uniform"'
    )
