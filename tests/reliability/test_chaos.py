"""The short form of `chaos`, and what its judge makes of histories that went wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.reliability import chaos
from tests.reliability.reference_run import chained, indices, settings_of
from tests.reliability.traffic import Step, digest_of
from tests.reliability.trainer import Trainer

SETTINGS = settings_of("judged")


def _right(step: int, version: int = 1, learner_step: int = 0) -> Step:
    selected = digest_of(indices(SETTINGS, step, 0, learner_step))
    return Step(0, step, step, step + 0.5, selected, version, learner_step)


def _trainer(folder: Path, trained: list[Step], next_step: int | None = None) -> Trainer:
    trainer = Trainer(0, SETTINGS.run_id, 0, "nowhere:1", str(folder), 0.0)
    history = ""
    for step in trained:
        history = chained(history, str(step.indices))
    state = {
        "trained": len(trained),
        "history": history,
        "loader": {"step": len(trained) if next_step is None else next_step},
    }
    trainer.checkpoint.write_text(json.dumps(state))
    return trainer


@pytest.fixture(scope="module")
def right() -> list[Step]:
    return [_right(step) for step in range(4)]


def test_a_trainer_that_went_back_to_its_checkpoint_is_found_right(tmp_path: Path, right: list[Step]) -> None:
    judged = chaos.judge(_trainer(tmp_path, right), SETTINGS, [*right[:3], *right[1:]])
    assert judged == chaos.Judged(4, 0, 0, 0, 0, 0, differs_from_checkpoint=False)


def test_a_step_that_was_never_answered_is_lost(tmp_path: Path, right: list[Step]) -> None:
    judged = chaos.judge(_trainer(tmp_path, right), SETTINGS, [right[0], *right[2:]])
    assert (judged.lost, judged.differs_from_checkpoint) == (1, True)


def test_a_step_trained_on_twice_is_doubled(tmp_path: Path, right: list[Step]) -> None:
    judged = chaos.judge(_trainer(tmp_path, right, next_step=3), SETTINGS, right)
    assert judged.doubled == 1


def test_an_answer_of_other_weights_than_it_names_differs(tmp_path: Path, right: list[Step]) -> None:
    wrong = replace(right[2], learner_step=1)
    judged = chaos.judge(_trainer(tmp_path, right), SETTINGS, [*right[:2], wrong, right[3]])
    assert judged.different == 1


def test_a_step_answered_otherwise_after_a_kill_is_changed_unless_other_weights_were_used(
    tmp_path: Path, right: list[Step]
) -> None:
    def changed(again: Step) -> int:
        return chaos.judge(_trainer(tmp_path, right), SETTINGS, [*right, again]).changed

    otherwise = digest_of(indices(SETTINGS, 2, 0, 1))
    assert changed(replace(right[2], indices=otherwise)) == 1
    assert changed(replace(right[2], indices=otherwise, learner_step=1)) == 1
    assert changed(replace(right[2], indices=otherwise, learner_step=1, version=2)) == 0
    assert changed(right[2]) == 0


def test_a_version_that_goes_back_within_one_life_is_counted(tmp_path: Path) -> None:
    steps = [_right(0, 2, 1), _right(1, 1, 0)]
    assert chaos.judge(_trainer(tmp_path, steps), SETTINGS, steps).backward == 1


@pytest.mark.ray
@pytest.mark.long
def test_no_step_is_lost_doubled_or_different_and_none_raises() -> None:
    figures, raw = chaos.run(short=True)
    timed = ("added wait around a kill, p99", "added wait around a hang, p99")
    assert [figure for figure in figures if figure.is_missed and figure.name not in timed] == [], raw
