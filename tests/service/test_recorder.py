"""What is recorded of a run that was deleted meanwhile: nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from preceptor_service.config import LedgerConfig
from preceptor_service.gateway.recorder import Recorder
from preceptor_service.ledger.ledger import Ledger
from preceptor_service.ledger.ledger_store import LedgerStore
from preceptor_service.method_registry import SCORE_RULES, SELECTORS
from preceptor_service.metrics import GatewayMetrics
from preceptor_service.run_store import RunRecord
from preceptor_service.runs import ActiveRun
from preceptor_service.storage.directory import DirectoryStorage
from tests.service import digits


@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_push_that_ends_after_its_run_makes_no_series(tmp_path: Path, is_deleted: bool) -> None:
    async def scenario() -> set[str]:
        spec = digits.spec("short")
        run = ActiveRun(RunRecord(spec, 0.0, 16), (), SCORE_RULES[spec.score], SELECTORS[spec.selector], deadline_s=30)
        metrics = GatewayMetrics()
        if is_deleted:
            run.deleted.set()
        ledger = Ledger(LedgerStore(DirectoryStorage(tmp_path), LedgerConfig()), LedgerConfig(), metrics)
        Recorder(metrics, ledger).pushed(run, "learner", 0.5)
        return {
            sample.name
            for family in metrics.registry.collect()
            for sample in family.samples
            if sample.labels.get("run") == run.run_id
        }

    pushed = {"preceptor_weight_pushes_total", "preceptor_weight_push_seconds_total"}
    assert asyncio.run(scenario()) == (set() if is_deleted else pushed)
