"""Finished runs are kept, found again, and not done twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.learning.experiments import EXPERIMENTS
from benchmarks.learning.ladder import Results, climb, missing
from benchmarks.learning.settings import Training, digest

RUNS = list(EXPERIMENTS["noisy-labels"].runs())[:4]


class Trainer:
    """Does nothing, and remembers what it was asked; breaks off at one of the runs."""

    def __init__(self, breaks_at: Training | None = None) -> None:
        self.done: list[Training] = []
        self._breaks_at = breaks_at

    def __call__(self, settings: Training) -> dict[str, Any]:
        if settings == self._breaks_at:
            raise KeyboardInterrupt
        self.done.append(settings)
        return {"quality": {"accuracy": settings.updates / 1e4}}


def climbed(path: Path, trainer: Trainer, runs: list[Training] = RUNS) -> Results:
    results = Results(path)
    climb(runs, results, trainer, path.with_name("claims"), lambda *_: None)
    return results


def test_every_run_is_done_once(tmp_path: Path) -> None:
    trainer = Trainer()
    results = climbed(tmp_path / "runs.jsonl", trainer, [*RUNS, RUNS[0]])

    assert trainer.done == RUNS
    assert [run["settings"]["updates"] for run in results] == [run.updates for run in RUNS]


def test_a_second_start_goes_on_where_the_first_was_broken_off(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        climbed(tmp_path / "runs.jsonl", Trainer(breaks_at=RUNS[2]))
    trainer = Trainer()
    climbed(tmp_path / "runs.jsonl", trainer)

    assert trainer.done == RUNS[2:]
    assert missing(RUNS, Results(tmp_path / "runs.jsonl")) == []


def test_a_line_that_a_kill_cut_off_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    climbed(path, Trainer())
    path.write_text(path.read_text()[:-20])
    trainer = Trainer()
    results = climbed(path, trainer)

    assert trainer.done == RUNS[3:]
    assert len(list(results)) == len(list(Results(path))) == len(RUNS)


def test_what_another_process_did_meanwhile_is_not_done_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    trainer = Trainer()

    def beside(number: int, count: int, settings: Training, outcome: dict[str, Any] | None) -> None:
        if outcome is None and number == 1:
            climbed(path, Trainer(), RUNS[2:])

    climb(RUNS, Results(path), trainer, tmp_path / "claims", beside)

    assert trainer.done == RUNS[:2]
    assert missing(RUNS, Results(path)) == []


def test_what_another_process_has_begun_is_left_to_it(tmp_path: Path) -> None:
    trainer, beside = Trainer(), Trainer()

    def while_training(settings: Training) -> dict[str, Any]:
        if settings == RUNS[1]:
            climbed(tmp_path / "runs.jsonl", beside)
        return trainer(settings)

    climb(RUNS, Results(tmp_path / "runs.jsonl"), while_training, tmp_path / "claims", lambda *_: None)

    assert beside.done == RUNS[2:]
    assert trainer.done == RUNS[:2]


def test_what_a_run_depends_on_tells_it_apart() -> None:
    run = EXPERIMENTS["noisy-labels"].training("learnability", 1.0, 0)
    assert run.selection is not None
    others = [
        replace(run, seed=1),
        replace(run, updates=run.updates - 1),
        replace(run, measured_on="validation"),
        replace(run, selection=None),
        replace(run, selection=replace(run.selection, temperature=0.5)),
    ]

    assert len({digest(settings) for settings in [run, *others]}) == 6
    assert digest(replace(run)) == digest(run)


def test_arms_that_two_experiments_share_are_one_run() -> None:
    ours, theirs = (EXPERIMENTS[name].training("uniform", 1.0, 0) for name in ("noisy-labels", "noisy-reference"))

    assert digest(ours) == digest(theirs)
