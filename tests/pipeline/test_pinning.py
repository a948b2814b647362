"""A learner version that the store does not tell at once: waited for until the step's deadline."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from preceptor import RunSpec
from preceptor.errors import UnavailableError
from preceptor_service import pipeline
from preceptor_service.byte_budget import ByteBudget
from preceptor_service.columns import ColumnSpec
from preceptor_service.method_registry import SCORE_RULES, SELECTORS
from preceptor_service.pipeline import Pipeline
from preceptor_service.run_store import RunRecord
from preceptor_service.runs import ActiveRun, Pinned, RunRegistry
from preceptor_service.scoring.hedging import Hedging
from preceptor_service.scoring.pool import ScorerPool


class LateRuns:
    """Knows the version from the third time on that it is asked, or never."""

    def __init__(self, tells: bool) -> None:
        self._tells = tells
        self.asked = 0

    async def pin(self, run: ActiveRun, step: int | None, observed_version: int) -> Pinned:
        self.asked += 1
        if self._tells and self.asked == 3:
            return Pinned(run.models(None), None, 7, False)
        raise UnavailableError("the store is away")


def pinned(runs: LateRuns, deadline_s: float, on_deadline: str) -> Pinned:
    async def scenario() -> Pinned:
        spec = RunSpec("late", model="small_cnn", score="hard_learner", on_deadline=on_deadline)  # type: ignore[arg-type]
        run = ActiveRun(
            RunRecord(spec, 0.0, 16),
            (ColumnSpec("label", "int64"),),
            SCORE_RULES[spec.score],
            SELECTORS[spec.selector],
            deadline_s=deadline_s,
        )
        deadline = asyncio.get_running_loop().time() + deadline_s
        late = Pipeline(cast(RunRegistry, runs), cast(ScorerPool, None), ByteBudget(1), 1.0, Hedging(None))
        return await late.pin(run, 7, 1, deadline)

    return asyncio.run(scenario())


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_PIN_AGAIN_S", 0.01)


@pytest.mark.parametrize("on_deadline", ["raise", "uniform"])
def test_it_is_asked_for_again(on_deadline: str) -> None:
    assert pinned(runs := LateRuns(tells=True), 30, on_deadline).staleness_steps == 7
    assert runs.asked == 3


def test_at_the_deadline_it_is_told_why_it_is_not_known() -> None:
    with pytest.raises(UnavailableError, match="the store is away"):
        pinned(LateRuns(tells=False), 0.1, "raise")


def test_a_run_that_falls_back_is_pinned_to_nothing() -> None:
    assert pinned(LateRuns(tells=False), 0.1, "uniform").learner is None
