"""Scorers that are lost again and again: tried elsewhere, but not for ever."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from preceptor import RunSpec
from preceptor.batches import encode
from preceptor.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidRunError,
    PreceptorError,
    ResourceExhaustedError,
    ScorersUnavailableError,
)
from preceptor_service.byte_budget import ByteBudget
from preceptor_service.columns import ColumnSpec
from preceptor_service.drawing import Draw
from preceptor_service.method_registry import SCORE_RULES, SELECTORS
from preceptor_service.pipeline import Pipeline
from preceptor_service.randomness import uniforms
from preceptor_service.run_store import RunRecord
from preceptor_service.runs import ActiveRun, Pinned, RunRegistry
from preceptor_service.scoring.hedging import Hedging
from preceptor_service.scoring.pool import (
    Deployed,
    LoadReport,
    Losses,
    MicroBatch,
    ModelRef,
    ScorerFailedError,
    ScorerLostError,
    ScorerUnreachableError,
    ScoringModels,
    Trained,
    Training,
)
from preceptor_service.selected import Arrived, Selected
from preceptor_service.selectors import SelectorSettings, top_k, uniform

LABELS = np.arange(10)
MODELS = ScoringModels("fragile", "classification", ModelRef("small_cnn", "{}", "sha256:0", 1), None)


class FragilePool:
    """Raises `error` the first `losses_before` times, then gives the label as the loss."""

    def __init__(self, losses_before: int, error: Exception) -> None:
        self.left = losses_before
        self.error = error

    async def losses(self, models: ScoringModels, batch: MicroBatch) -> Losses:
        if self.left:
            self.left -= 1
            raise self.error
        labels = batch.columns["label"][: batch.row_count].astype(np.float32)
        return Losses(labels, None, forward_s=0.0, load_s=0.0)

    async def train(self, training: Training) -> Trained:
        raise NotImplementedError

    async def load(self, models: ScoringModels) -> LoadReport:
        raise NotImplementedError

    def deployed(self) -> Deployed:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


class NoRuns(RunRegistry):
    """The pipeline asks it only to pin, which these tests do by hand."""

    def __init__(self) -> None:
        pass


def select(losses_before: int, error: Exception | None = None, deadline_s: float = 30, **settings: str) -> Selected:
    async def scenario() -> Selected:
        spec = RunSpec("fragile", model="small_cnn", score="hard_learner", selector="top_k", **settings)  # type: ignore[arg-type]
        run = ActiveRun(
            RunRecord(spec, 0.0, 16),
            (ColumnSpec("label", "int64"),),
            SCORE_RULES[spec.score],
            SELECTORS[spec.selector],
            deadline_s=deadline_s,
        )
        budget = ByteBudget(1 << 20)
        pool = FragilePool(losses_before, error or ScorerLostError("killed"))
        pipeline = Pipeline(NoRuns(), pool, budget, micro_batch_timeout_s=5, hedging=Hedging(None))
        deadline = asyncio.get_running_loop().time() + deadline_s
        arrived = Arrived(bytes(encode({"label": LABELS}).body), 10, deadline)
        try:
            return await pipeline.select(run, Pinned(MODELS, None, None, False), arrived, Draw(4, 0, 3))
        finally:
            assert budget.held_bytes == 0

    return asyncio.run(scenario())


def test_a_few_lost_scorers_change_nothing_but_the_count() -> None:
    selected = select(losses_before=2)
    assert (
        selected.indices.tolist() == top_k(LABELS.astype(np.float32), 3, np.full(10, 0.5), SelectorSettings()).tolist()
    )
    assert selected.stages.rescored_micro_batches == 2
    assert not selected.is_fallback


def test_candidates_that_cost_every_scorer_its_life_are_given_up() -> None:
    with pytest.raises(ScorersUnavailableError, match="5 scorers were lost with the same 10 candidates"):
        select(losses_before=1000)


def test_they_fall_back_where_the_run_says_so() -> None:
    selected = select(losses_before=1000, on_deadline="uniform")
    assert selected.is_fallback
    noise = uniforms(0, "fragile", 4, 0, 10)
    assert selected.indices.tolist() == uniform(np.zeros(10, np.float32), 3, noise, SelectorSettings()).tolist()


@pytest.mark.parametrize("kind", [InternalError, ResourceExhaustedError])
def test_a_scorer_that_lives_and_fails_costs_another_try_and_no_answer(kind: type[PreceptorError]) -> None:
    selected = select(losses_before=2, error=ScorerFailedError(kind("broken")))
    assert not selected.is_fallback
    assert selected.stages.rescored_micro_batches == 2


@pytest.mark.parametrize("kind", [InternalError, ResourceExhaustedError])
def test_where_all_scorers_fail_what_they_say_is_the_answer(kind: type[PreceptorError]) -> None:
    with pytest.raises(kind, match="broken"):
        select(losses_before=5, error=ScorerFailedError(kind("broken")))


def test_where_all_scorers_fail_the_run_falls_back_where_it_says_so() -> None:
    selected = select(losses_before=5, error=ScorerFailedError(InternalError("broken")), on_deadline="uniform")
    assert selected.fallback == "scorers"


def test_what_every_scorer_would_answer_is_asked_once_and_no_reason_to_fall_back() -> None:
    with pytest.raises(InvalidRunError):
        select(losses_before=1, error=InvalidRunError("no such setting"), on_deadline="uniform")


def test_scorers_that_are_cut_off_are_waited_for_while_there_is_time() -> None:
    selected = select(losses_before=9, error=ScorerUnreachableError("cut off"), on_deadline="uniform")
    assert not selected.is_fallback


def test_scorers_that_stay_cut_off_are_waited_for_until_the_deadline() -> None:
    with pytest.raises(DeadlineExceededError):
        select(losses_before=1000, error=ScorerUnreachableError("cut off"), deadline_s=0.5)
    selected = select(1000, ScorerUnreachableError("cut off"), deadline_s=0.5, on_deadline="uniform")
    assert selected.fallback == "deadline"
