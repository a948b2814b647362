"""The traffic driver sees errors, gaps and steps that never end, and says around which mark."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from preceptor import Selection
from preceptor.errors import UnavailableError
from tests.reliability.traffic import Mark, Record, Step, Traffic, append, digest_of, read


def _selection(step: int) -> Selection:
    return Selection(
        indices=np.array([step, 1]),
        scores=np.zeros(2, np.float32),
        step=step,
        rank=0,
        learner_version=3,
        learner_step=2,
        staleness_steps=None,
        is_fallback=False,
        non_finite_count=0,
        timings=None,  # type: ignore[arg-type]
    )


def _step(trainer: int, began_s: float, ended_s: float, error: str | None = None) -> Step:
    return Step(trainer, 0, began_s, ended_s, None if error else "a", error=error)


def test_every_step_of_every_trainer_is_recorded_in_order() -> None:
    with Traffic([_selection, _selection], first_step=5) as traffic:
        traffic.wait_for_steps(3)
    record = traffic.so_far()
    for trainer in (0, 1):
        steps = [step for step in record.steps if step.trainer == trainer]
        assert [step.step for step in steps] == list(range(5, 5 + len(steps)))
        assert steps[2].indices == digest_of([7, 1])
        assert (steps[2].version, steps[2].learner_step) == (3, 2)


def test_an_error_is_recorded_around_the_mark_in_which_it_happened() -> None:
    broken = threading.Event()

    def select(step: int) -> Selection:
        if broken.is_set():
            raise UnavailableError("gone")
        return _selection(step)

    with Traffic([select]) as traffic:
        with traffic.mark("calm") as calm:
            traffic.wait_for_steps(2)
        traffic.wait_for_steps(1)  # the one that began in the calm
        with traffic.mark("broken") as broken_mark:
            broken.set()
            traffic.wait_for_steps(2)
            broken.clear()
    record = traffic.so_far()
    record.check_undisturbed(calm, longest_gap_s=60, margin_s=0)
    assert record.errors(broken_mark)[0].error == "UnavailableError: gone"
    with pytest.raises(AssertionError, match="failed around 'broken'"):
        record.check_undisturbed(broken_mark, longest_gap_s=60)


def test_what_is_no_error_of_ours_ends_the_trainer_and_is_raised() -> None:
    def select(step: int) -> Selection:
        raise TypeError("a mistake of the proof")

    with pytest.raises(TypeError, match="a mistake of the proof"), Traffic([select]):
        pass


def test_a_trainer_that_never_gets_another_answer_is_a_gap() -> None:
    mark = Mark("killed", 10, 11)
    steps = [_step(0, 9, 9.5), _step(0, 9.5, 12), _step(1, 9, 10.5)]
    record = Record(steps, [mark], until_s=40)
    assert record.longest_gap_s(mark) == 29.5
    with pytest.raises(AssertionError, match=r"a trainer waited 29.50 s, allowed are 5"):
        record.check_undisturbed(mark, longest_gap_s=5)


def test_a_gap_before_the_mark_or_long_after_it_is_none_of_its() -> None:
    mark = Mark("pushed", 10, 11)
    steps = [_step(0, 0, 1), _step(0, 1, 9), *(_step(0, at, at + 0.5) for at in (9.5, 10, 10.5, 11)), _step(0, 12, 30)]
    record = Record(steps, [mark], until_s=30)
    assert record.longest_gap_s(mark, margin_s=0) == 1.0
    assert record.longest_gap_s(mark, margin_s=5) == 18.5


def test_steps_of_a_killed_process_are_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "trainer.jsonl"
    with path.open("a") as file:
        append(file, _step(0, 1, 2))
        append(file, _step(0, 2, 3, "gone"))
        file.write('{"trainer": 0, "st')
    assert read([path]) == [_step(0, 1, 2), _step(0, 2, 3, "gone")]
