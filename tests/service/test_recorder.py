"""What is recorded of a run that was deleted meanwhile: nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from preceptor.errors import InternalError
from preceptor.v1 import selection_pb2
from preceptor_service.config import LedgerConfig
from preceptor_service.gateway.recorder import Recorder
from preceptor_service.ledger.ledger import Ledger
from preceptor_service.ledger.ledger_store import LedgerStore
from preceptor_service.method_registry import SCORE_RULES, SELECTORS
from preceptor_service.metrics import GatewayMetrics
from preceptor_service.run_store import RunRecord
from preceptor_service.runs import ActiveRun, Pinned
from preceptor_service.scoring.pool import ScoringModels
from preceptor_service.selected import Selected
from preceptor_service.storage.directory import DirectoryStorage
from tests.service import digits

Event = Callable[[Recorder, ActiveRun], None]


def _answered(recorder: Recorder, run: ActiveRun) -> None:
    scores = np.arange(4, dtype=np.float32)
    pinned = Pinned(ScoringModels(run.run_id, "classification", None, None), None, None, is_too_stale=False)
    selected = Selected(np.array([3]), scores, scores[:0], pinned, "deadline", 0)
    header = selection_pb2.SuperBatchHeader(step=1, row_count=4, sub_batch_size=1)
    recorder.answered(run, header, selected, selection_pb2.Selection())


EVENTS: dict[str, tuple[Event, str]] = {
    "opened": (lambda recorder, run: recorder.opened(run), "super_batches_total"),
    "arrived": (lambda recorder, run: recorder.arrived(run, 1), "max_staleness_steps"),
    "answered": (_answered, "candidates_total"),
    "failed": (lambda recorder, run: recorder.failed(run, InternalError("x")), "failed_super_batches_total"),
    "pushed": (lambda recorder, run: recorder.pushed(run, "learner", 0.5), "weight_push_seconds_total"),
    "push failed": (lambda recorder, run: recorder.push_failed(run, InternalError("x")), "failed_weight_pushes_total"),
    "waits for credit": (lambda recorder, run: recorder.waits_for_credit(run), "credit_waits_total"),
    "waited for credit": (lambda recorder, run: recorder.waited_for_credit(run, 0.5), "credit_wait_seconds_total"),
}
"""What can happen to a run, and a metric that it moves."""


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("is_deleted", [False, True], ids=["alive", "deleted"])
def test_what_happens_after_the_end_of_a_run_makes_no_series(tmp_path: Path, event: str, is_deleted: bool) -> None:
    async def scenario() -> set[str]:
        spec = digits.spec("short", max_staleness_steps=9)
        run = ActiveRun(RunRecord(spec, 0.0, 16), (), SCORE_RULES[spec.score], SELECTORS[spec.selector], deadline_s=30)
        metrics = GatewayMetrics()
        if is_deleted:
            run.deleted.set()
        ledger = Ledger(LedgerStore(DirectoryStorage(tmp_path), LedgerConfig()), LedgerConfig(), metrics)
        EVENTS[event][0](Recorder(metrics, ledger), run)
        return {
            sample.name
            for family in metrics.registry.collect()
            for sample in family.samples
            if sample.labels.get("run") == run.run_id
        }

    found = asyncio.run(scenario())
    assert (f"preceptor_{EVENTS[event][1]}" in found) != is_deleted
    assert not (found and is_deleted)
