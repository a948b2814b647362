from __future__ import annotations

import pytest

from benchmarks.learning.verdict import Rung, verdict


def rungs(**qualities: float) -> dict[float, Rung]:
    """Runs whose cost is their budget: 1,000 operations and 10 s for the full one."""
    budgets = {int(name.removeprefix("at")) / 100: quality for name, quality in qualities.items()}
    return {budget: Rung(quality, 1000 * budget, 10 * budget) for budget, quality in budgets.items()}


UNIFORM = rungs(at100=0.80, at75=0.79, at50=0.75)


def test_the_smallest_budget_that_reaches_the_controls_full_one_counts() -> None:
    found = verdict(rungs(at100=0.85, at75=0.83, at50=0.80, at25=0.79), UNIFORM)

    assert found.reached_at == 0.5
    assert found.fewer_updates == 0.5
    assert (found.flops_ratio, found.cpu_ratio) == (0.5, 0.5)
    assert found.gain == pytest.approx(0.05)


def test_costs_are_those_of_the_run_that_reached_it_with_all_that_was_charged_to_it() -> None:
    arm = {1.0: Rung(0.9, 1500, 30), 0.5: Rung(0.81, 800, 12), 0.25: Rung(0.7, 400, 6)}

    found = verdict(arm, UNIFORM)

    assert (found.flops_ratio, found.cpu_ratio) == (0.8, 1.2)


def test_an_arm_that_never_reaches_it_saves_nothing() -> None:
    found = verdict(rungs(at100=0.79, at50=0.7), UNIFORM)

    assert (found.reached_at, found.flops_ratio, found.cpu_ratio) == (None, None, None)
    assert found.fewer_updates == 0
    assert found.gain == pytest.approx(-0.01)


def test_the_control_reaches_itself_at_its_full_budget() -> None:
    assert verdict(UNIFORM, UNIFORM).reached_at == 1.0


def test_a_control_without_its_full_budget_is_no_control() -> None:
    with pytest.raises(KeyError):
        verdict(UNIFORM, rungs(at50=0.7))
