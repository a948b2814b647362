"""The pipeline: from a super-batch to the indices worth training on.

Reads like Algorithm 1 of Evans et al. (arXiv 2312.05328), for any number of super-batches at once:
pin one learner version, score every candidate under learner copy and reference, draw the sub-batch.
Called by the gateway; knows neither gRPC nor Ray nor torch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from preceptor.errors import (
    DeadlineExceededError,
    InvalidSuperBatchError,
    PreceptorError,
    ScorersUnavailableError,
    UnavailableError,
)
from preceptor_service.byte_budget import ByteBudget
from preceptor_service.drawing import Draw, drawn_by_score, drawn_uniformly
from preceptor_service.handing_out import given_before, handed_out
from preceptor_service.memory_bank.ids import Ids, as_ids
from preceptor_service.reference_losses import ReferenceLosses
from preceptor_service.runs import ActiveRun, Pinned, RunRegistry
from preceptor_service.schedule import count_by_score
from preceptor_service.scoring.hedging import Hedging
from preceptor_service.scoring.pool import (
    Losses,
    MicroBatch,
    ScorerFailedError,
    ScorerLostError,
    ScorerPool,
    ScoringModels,
)
from preceptor_service.scoring.rescoring import Rescoring
from preceptor_service.selected import Arrived, FallbackReason, Scored, Selected, Stages
from preceptor_service.super_batch import SuperBatch, decode

P = ParamSpec("P")
T = TypeVar("T")

_NOTHING = np.empty(0, np.float32)
_LEAST_CHARGE_BYTES = 1024 * 1024
"""What a small micro-batch counts as, or 1/64 of the budget: many tiny ones keep a scorer busy, too."""
_PIN_AGAIN_S = 0.1
_ROWS_DRAWN_HERE = 16_384
"""Up to here a draw takes 0.2 ms, less than the way to another thread and back."""


class Pipeline:
    """Selects sub-batches for every run of one gateway, on one event loop."""

    def __init__(
        self,
        runs: RunRegistry,
        pool: ScorerPool,
        in_flight: ByteBudget,
        micro_batch_timeout_s: float,
        hedging: Hedging,
    ) -> None:
        self._runs = runs
        self._pool = pool
        self._in_flight = in_flight
        self._hedging = hedging
        self._micro_batch_timeout_s = micro_batch_timeout_s
        # Not those that wait for the store: while it hangs, super-batches go on.
        self._threads = ThreadPoolExecutor(thread_name_prefix="preceptor-super-batch")
        self._least_charge_bytes = min(_LEAST_CHARGE_BYTES, in_flight.limit_bytes // 64)

    def close(self) -> None:
        """Ends its threads, once nothing is selected any more."""
        self._threads.shutdown(wait=False)

    def expected_wait_s(self, run: ActiveRun) -> float:
        """Returns how long scorers need for what they were already given of `run`; 0 where nobody knows."""
        return self._in_flight.expected_wait_s(run.run_id)

    async def pin(self, run: ActiveRun, step: int | None, observed_version: int, deadline: float) -> Pinned:
        """Names the one learner version behind the answer to `step`, at least `observed_version`.

        Called before `select` or `score`, in the order in which a trainer's super-batches arrived, so
        that versions never go back. Waits, until `deadline`, while the store does not tell the version, and for fresher
        weights where the run says so.

        Raises:
            WeightsMissingError: the score rule needs weights that were never pushed.
            DeadlineExceededError, UnavailableError: nothing came of waiting, and the run does not fall back.
        """
        pinned = await self._pinned(run, step, observed_version, deadline)
        while pinned.is_too_stale and run.spec.on_stale == "wait":
            if not await self._runs.wait_for_push(run, deadline):
                break
            pinned = await self._pinned(run, step, observed_version, deadline)
        return pinned

    async def _pinned(self, run: ActiveRun, step: int | None, observed_version: int, deadline: float) -> Pinned:
        why: PreceptorError = DeadlineExceededError(f"the store told no learner version within {run.deadline_s:g} s")
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    try:
                        return await self._runs.pin(run, step, observed_version)
                    except UnavailableError as error:
                        why = error
                    await asyncio.sleep(_PIN_AGAIN_S)
        except TimeoutError:
            if step is None or run.spec.on_deadline != "uniform":
                raise why from None
            return Pinned(run.models(None), None, None, False)  # its deadline is over: `select` draws uniformly

    async def select(self, run: ActiveRun, pinned: Pinned, arrived: Arrived, draw: Draw) -> Selected:
        """Answers one super-batch (Algorithm 1, lines 4 to 6), and has a co-trained model learn from it (line 8).

        Raises:
            InvalidSuperBatchError: the body or `sub_batch_size` does not fit the run.
            NonFiniteScoresError: fewer finite scores than `sub_batch_size`.
            DeadlineExceededError: not scored in time, and the run does not fall back.
            ScorersUnavailableError: scorers were lost again and again, and the run does not fall back.
            ResourceExhaustedError, InternalError: scorers failed again and again, and the run does not fall back.
            PreceptorError: of a co-trained run, also as `CoTrainer.hand_out`.
        """
        stages = Stages()
        if run.co_trainer is not None and (given := await given_before(run.co_trainer, pinned, arrived, draw)):
            return given
        super_batch = await self._decoded(run, arrived, stages)
        _check_size(draw, super_batch)
        with _failures_answered():
            selected = await self._selected(run, pinned, super_batch, arrived.deadline, draw, stages)
        if run.co_trainer is not None:
            selected = await handed_out(run, run.co_trainer, selected, super_batch, arrived, draw)
        return selected

    async def _selected(
        self, run: ActiveRun, pinned: Pinned, super_batch: SuperBatch, deadline: float, draw: Draw, stages: Stages
    ) -> Selected:
        by_score = count_by_score(run.spec, draw.step, draw.sub_batch_size)
        if by_score == 0:
            return _drawn_uniformly(run, pinned, super_batch, draw, stages)
        if pinned.is_too_stale and run.spec.on_stale == "uniform":
            return _drawn_uniformly(run, pinned, super_batch, draw, stages, fallback="stale")
        left_s = deadline - asyncio.get_running_loop().time()
        if run.spec.on_deadline == "uniform" and self.expected_wait_s(run) >= left_s:
            return _drawn_uniformly(run, pinned, super_batch, draw, stages, fallback="deadline")  # now, not then
        try:
            if run.co_trainer is not None:
                pinned = await self._runs.co_trained(run.co_trainer, run, draw.step, deadline)
            scored = await self._scored_in_time(run, pinned, super_batch, deadline, stages)
        except (DeadlineExceededError, ScorersUnavailableError, ScorerFailedError) as error:
            if run.spec.on_deadline != "uniform":
                raise
            reason: FallbackReason = "deadline" if isinstance(error, DeadlineExceededError) else "scorers"
            return _drawn_uniformly(run, pinned, super_batch, draw, stages, fallback=reason)
        return await self._drawn(run, pinned, super_batch, scored, draw, by_score, stages)

    async def score(self, run: ActiveRun, pinned: Pinned, arrived: Arrived) -> tuple[Scored, Stages]:
        """Scores one super-batch and draws nothing.

        Raises:
            InvalidSuperBatchError: the body does not fit the run.
            DeadlineExceededError: not scored in time.
            ScorersUnavailableError: scorers were lost again and again.
            ResourceExhaustedError, InternalError: they failed again and again.
        """
        stages = Stages()
        super_batch = await self._decoded(run, arrived, stages)
        with _failures_answered():
            return await self._scored_in_time(run, pinned, super_batch, arrived.deadline, stages), stages

    async def score_by_id(
        self, run: ActiveRun, pinned: Pinned, arrived: Arrived
    ) -> tuple[Scored, Ids, NDArray[np.uint64], Stages]:
        """Scores one super-batch for the run's memory bank, which keeps scores by id, and a digest of each content.

        Errors as `score`.
        """
        stages = Stages()
        super_batch = await self._decoded(run, arrived, stages)
        ids, contents = await self._in_thread(_named, super_batch)
        with _failures_answered():
            scored = await self._scored_in_time(run, pinned, super_batch, arrived.deadline, stages)
        return scored, ids, contents, stages

    async def _decoded(self, run: ActiveRun, arrived: Arrived, stages: Stages) -> SuperBatch:
        started = time.perf_counter()
        super_batch = await self._in_thread(decode, arrived.body, run.columns, arrived.rows)
        stages.decode_s = time.perf_counter() - started
        return super_batch

    async def _scored_in_time(
        self, run: ActiveRun, pinned: Pinned, super_batch: SuperBatch, deadline: float, stages: Stages
    ) -> Scored:
        if pinned.is_too_stale and run.spec.on_stale == "wait":
            raise DeadlineExceededError(
                f"no fresher weights came within {run.deadline_s:g} s: the learner copy is {pinned.staleness_steps} "
                f"steps old, max_staleness_steps is {run.spec.max_staleness_steps}; push more often or raise the bound"
            )
        folds = await self._in_thread(super_batch.folds) if run.spec.cross_reference else None
        known = None if run.table is None else await self._in_thread(_looked_up, run.table, super_batch, stages)
        try:
            async with asyncio.timeout_at(deadline):
                if known is None:
                    work = _work(pinned.models, super_batch, run.micro_batch_rows)
                    losses = await self._losses(work, deadline, stages)
                    measured = _measured(losses, folds)
                else:
                    measured = await self._with_known(
                        known, pinned.models, super_batch, run.micro_batch_rows, deadline, stages
                    )
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"{super_batch.rows} candidates were not scored within {run.deadline_s:g} s; add scorers, offer fewer, "
                "or raise the run's deadline_s"
            ) from error
        return Scored(**measured, scores=run.rule(super_batch.rows, **measured))

    async def _with_known(
        self,
        known: _Known,
        models: ScoringModels,
        super_batch: SuperBatch,
        micro_batch_rows: int,
        deadline: float,
        stages: Stages,
    ) -> dict[str, NDArray[np.float32] | None]:
        """Scores all candidates under the learner copy, and those that the run's table lacks under the reference."""
        missing = super_batch.take(np.flatnonzero(~known.found))
        by_learner = _work(replace(models, reference=None), super_batch, micro_batch_rows)
        by_reference = _work(replace(models, learner=None), missing, micro_batch_rows)
        losses = await self._losses([*by_learner, *by_reference], deadline, stages)
        reference = known.losses.copy()
        live = _joined([part.reference for part in losses[len(by_learner) :]])
        if live is not None:
            reference[~known.found] = live
        return {**_measured(losses[: len(by_learner)], None), "reference_losses": reference}

    async def _losses(
        self, work: list[tuple[ScoringModels, MicroBatch]], deadline: float, stages: Stages
    ) -> list[Losses]:
        started = time.perf_counter()
        tasks = [asyncio.create_task(self._losses_of_one(*each, deadline, stages)) for each in work]
        try:
            losses = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        stages.losses_s = time.perf_counter() - started
        return losses

    async def _losses_of_one(
        self, models: ScoringModels, micro_batch: MicroBatch, deadline: float, stages: Stages
    ) -> Losses:
        """Scores one micro-batch; where its scorer is lost, fails, hangs or is too slow, again and elsewhere."""
        rescoring = Rescoring(micro_batch)
        while True:
            queued = time.perf_counter()
            async with self._in_flight.hold(self._charge(micro_batch), models.run_id):
                called = time.perf_counter()
                stages.wait_s += called - queued
                try:
                    async with asyncio.timeout(self._micro_batch_timeout_s):
                        ask = partial(self._pool.losses, models, rescoring.micro_batch)
                        losses, asked = await self._hedging.first(ask, deadline)
                    stages.rescored_micro_batches += asked - 1
                    stages.count(models, micro_batch, losses, time.perf_counter() - called)
                    return losses
                except (ScorerLostError, TimeoutError) as error:
                    stages.rescored_micro_batches += 1
                    pause_s = rescoring.pause_s(error)
            await asyncio.sleep(pause_s)

    async def _drawn(
        self,
        run: ActiveRun,
        pinned: Pinned,
        super_batch: SuperBatch,
        scored: Scored,
        draw: Draw,
        by_score: int,
        stages: Stages,
    ) -> Selected:
        started = time.perf_counter()
        scores = scored.scores
        here = len(scores) <= _ROWS_DRAWN_HERE
        drawing = (run.spec, run.selector, scores, draw, by_score)
        indices, weights = drawn_by_score(*drawing) if here else await self._in_thread(drawn_by_score, *drawing)
        non_finite = len(scores) - int(np.count_nonzero(np.isfinite(scores)))
        stages.select_s = time.perf_counter() - started
        return Selected(indices, scores, weights, pinned, None, non_finite, super_batch.example_id, stages)

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))

    def _charge(self, micro_batch: MicroBatch) -> int:
        return max(micro_batch.nbytes, self._least_charge_bytes)


@dataclass(frozen=True)
class _Known:
    """Reference losses from a table: float32 `[B]`, and bool `[B]`, which of them it has."""

    losses: NDArray[np.float32]
    found: NDArray[np.bool_]


@contextmanager
def _failures_answered() -> Iterator[None]:
    """Within it scorers that failed to the last are answered with what the last one says."""
    try:
        yield
    except ScorerFailedError as error:
        raise error.answer from None  # why is in the scorers' log


def _looked_up(table: ReferenceLosses, super_batch: SuperBatch, stages: Stages) -> _Known:
    ids = super_batch.ids(f"this run looks reference losses up in table {table.name!r}")
    known = _Known(*table.find(ids, super_batch.contents() if table.keeps_contents else None))
    stages.reference_losses_found = int(np.count_nonzero(known.found))
    stages.reference_losses_missing = super_batch.rows - stages.reference_losses_found
    return known


def _named(super_batch: SuperBatch) -> tuple[Ids, NDArray[np.uint64]]:
    return as_ids(super_batch.ids("a memory bank keeps scores by id")), super_batch.contents()


def _work(models: ScoringModels, super_batch: SuperBatch, size: int) -> list[tuple[ScoringModels, MicroBatch]]:
    """Returns what is to be scored under which models: nothing where the score rule reads no loss."""
    if models.learner is None and models.reference is None:
        return []
    return [(models, micro_batch) for micro_batch in super_batch.micro_batches(size)]


def _check_size(draw: Draw, super_batch: SuperBatch) -> None:
    if not 1 <= draw.sub_batch_size <= super_batch.rows:
        raise InvalidSuperBatchError(
            f"sub_batch_size is {draw.sub_batch_size}; choose from 1 to the {super_batch.rows} candidates offered"
        )


def _drawn_uniformly(
    run: ActiveRun,
    pinned: Pinned,
    super_batch: SuperBatch,
    draw: Draw,
    stages: Stages,
    fallback: FallbackReason | None = None,
) -> Selected:
    """Unscored: as a fallback, which is marked, or because the run's schedule says so."""
    indices, weights = drawn_uniformly(run.spec, run.selector, super_batch.rows, draw)
    return Selected(indices, _NOTHING, weights, pinned, fallback, 0, super_batch.example_id, stages)


def _measured(parts: list[Losses], folds: NDArray[np.int64] | None) -> dict[str, NDArray[np.float32] | None]:
    """Returns what score rules read, float32 `[B]` each; of two references the one that did not see the candidate."""
    reference = _joined([part.reference for part in parts])
    fold_1 = _joined([part.reference_fold_1 for part in parts])
    if folds is not None and reference is not None and fold_1 is not None:
        reference = np.where(folds == 0, fold_1, reference)
    return {
        "learner_losses": _joined([part.learner for part in parts]),
        "learner_gradient_norms": _joined([part.learner_gradient_norms for part in parts]),
        "reference_losses": reference,
    }


def _joined(parts: list[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    present = [part for part in parts if part is not None]
    return np.concatenate(present) if present else None
