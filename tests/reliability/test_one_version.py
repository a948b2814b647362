"""The proof `one-version` in seconds, and that it sees what it is there to see."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from preceptor_service.app import start_service
from preceptor_service.runs import ActiveRun, Pinned, RunRegistry
from preceptor_service.scoring.in_process import InProcessPool
from preceptor_service.scoring.pool import LoadReport, Losses, MicroBatch, ScoringModels
from tests.reliability.one_version import push_under_load
from tests.reliability.reference_run import scorer_settings
from tests.service.conftest import config, target_of

PUSHES = 30


@pytest.fixture
def target(tmp_path: Path) -> Iterator[str]:
    service = start_service(config(tmp_path, scorer=scorer_settings()))
    yield target_of(service)
    service.stop()


@pytest.mark.slow
def test_every_answer_is_of_one_version_and_none_goes_back(target: str) -> None:
    tally = push_under_load(target, PUSHES, "pushes")

    assert tally.told == []
    assert tally.unnumbered == 0
    assert max(seen.newest for seen in tally.seen) == PUSHES + 1
    assert all(seen.answers > 0 for seen in tally.seen)


def test_micro_batches_of_two_versions_do_not_pass(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load, losses = InProcessPool.load, InProcessPool.losses
    loaded: deque[ScoringModels] = deque(maxlen=2)

    async def noted(self: InProcessPool, models: ScoringModels) -> LoadReport:
        loaded.append(models)
        return await load(self, models)

    async def of_any(self: InProcessPool, models: ScoringModels, batch: MicroBatch) -> Losses:
        loaded.rotate()
        return await losses(self, loaded[0], batch)

    monkeypatch.setattr(InProcessPool, "load", noted)
    monkeypatch.setattr(InProcessPool, "losses", of_any)

    assert push_under_load(target, 3, "pushes").count("mixed") > 0


def test_an_older_version_now_and_then_does_not_pass(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = RunRegistry.pin
    pinned: list[Pinned] = []

    async def at_times_the_first(self: RunRegistry, run: ActiveRun, step: int | None, observed_version: int) -> Pinned:
        pinned.append(await pin(self, run, step, observed_version))
        return pinned[0 if len(pinned) % 5 == 0 else -1]

    monkeypatch.setattr(RunRegistry, "pin", at_times_the_first)

    tally = push_under_load(target, 10, "pushes")

    assert tally.count("backward") > 0
    assert tally.count("mixed") == 0
