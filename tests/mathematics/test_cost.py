"""The cost model gives the paper's amortisation figure."""

from __future__ import annotations

import math
from typing import Any

import pytest

from preceptor import CoTraining, RunSpec
from preceptor_service.cost import break_even_savings, relative_compute
from preceptor_service.cost_meter import ForwardFlops, cost_of
from preceptor_service.method_registry import MethodRegistry
from preceptor_service.run_counters import RunCounters

# Forward multiply-adds at 224², patches of 16, in 10^9; arXiv 2312.05328 scores for a ViT-L learner at B/b = 2.
LEARNER_L = 61.6


# Mu's size is not stated; 0.29 is what its own figure implies, so that row only holds the formula's shape together.
@pytest.mark.parametrize(
    ("scorer", "savings", "percent"), [(17.6, 0.31, 143.6), (4.6, 0.30, 89.7), (1.25, 0.26, 79.7), (0.29, 0.24, 77.3)]
)
def test_the_papers_figure_comes_out(scorer: float, savings: float, percent: float) -> None:
    share = scorer / LEARNER_L

    assert 100 * relative_compute(savings, share, share, ratio=2) == pytest.approx(percent, abs=0.2)


@pytest.mark.parametrize(
    ("scorer", "learner", "percent"), [(1.25, 61.6, 6.5), (1.25, 17.6, 20), (4.6, 61.6, 21), (17.6, 61.6, 57)]
)
def test_at_break_even_selection_costs_what_it_saves(scorer: float, learner: float, percent: float) -> None:
    share = scorer / learner

    assert relative_compute(percent / 100, share, share, ratio=2) == pytest.approx(1, abs=0.01)
    assert 100 * break_even_savings(share, share, ratio=2) == pytest.approx(percent, abs=1)


def test_it_counts_forward_and_backward_passes_of_every_example() -> None:
    # In forward passes of the learner: 1,000 uniform updates of 64, against 600 on which 320 are scored as well.
    uniform = 1000 * 64 * 3
    selected = 600 * (64 * 3 + 64 * 3 * 0.1 + 320 * 0.1 + 320 * 0.2)
    reference = 500 * 64 * 3 * 0.2

    found = relative_compute(0.4, 0.1, 0.2, ratio=5, charge_reference_training=0.5)

    assert found == pytest.approx((selected + reference) / uniform)


def test_cached_reference_losses_cost_no_scoring_but_the_references_training() -> None:
    scored = relative_compute(0.4, 0.1, 0.2, ratio=5)
    cached = relative_compute(0.4, 0.1, 0.2, ratio=5, charge_reference_scoring=0.0)

    assert scored - cached == pytest.approx(0.6 * 5 / 3 * 0.2)
    assert cached == pytest.approx(0.6 * (1 + 0.1 + 5 / 3 * 0.1) + 0.2)
    least = break_even_savings(0.1, 0.2, 5, charge_reference_scoring=0.0)
    assert relative_compute(least, 0.1, 0.2, 5, charge_reference_scoring=0.0) == pytest.approx(1)


def test_a_run_that_needed_more_updates_costs_more() -> None:
    assert relative_compute(-0.5, 0.0, 0.0, ratio=2) == pytest.approx(1.5)


def test_scores_that_serve_twice_cost_half() -> None:
    once, twice = (relative_compute(0.4, 0.1, 0.2, ratio=ratio) for ratio in (1.0, 0.5))
    assert once - twice == pytest.approx(0.6 * 0.5 / 3 * 0.3)


def test_a_free_scorer_costs_what_its_updates_cost() -> None:
    assert relative_compute(0.46, 0.0, 0.0, ratio=5) == pytest.approx(0.54)


@pytest.mark.parametrize(
    ("name", "value"),
    [("savings", 1.0), ("savings", math.nan), ("f_online", -0.1), ("f_reference", math.inf), ("ratio", -0.1),
     ("charge_reference_training", -1.0)],
)  # fmt: skip
def test_a_number_out_of_range_is_named(name: str, value: float) -> None:
    arguments = {"savings": 0.5, "f_online": 0.1, "f_reference": 0.1, "ratio": 2.0, name: value}

    with pytest.raises(ValueError, match=f"{name} is {value}"):
        relative_compute(**arguments)


@pytest.mark.parametrize("online_training", [0.0, 1.0])
def test_at_break_even_both_cost_the_same(online_training: float) -> None:
    found = break_even_savings(0.1, 0.2, 5, 0.5, online_training)
    assert relative_compute(found, 0.1, 0.2, 5, 0.5, online_training) == pytest.approx(1)


def test_a_copy_of_the_learner_itself_is_not_trained_twice() -> None:
    trained = relative_compute(0.5, 0.1, 0.0, ratio=2)
    assert relative_compute(0.5, 0.1, 0.0, ratio=2, charge_online_training=0) == pytest.approx(trained - 0.5 * 0.1)


@pytest.mark.parametrize(
    ("settings", "updates_of_the_copy"),
    [({}, 0.0), ({"learner_flops": 100.0}, 1.0), ({"co_training": CoTraining()}, 1.0)],
    ids=["the learner itself", "a smaller model", "co-trained"],
)
def test_a_run_is_charged_for_updates_of_the_copy_where_it_is_a_model_of_its_own(
    settings: dict[str, Any], updates_of_the_copy: float
) -> None:
    spec = RunSpec("charged", model="small_cnn", score="hard_learner", **settings)
    counters = RunCounters(super_batches=1, candidates=40, selected=20, learner_rows=40)
    cost = cost_of(spec, MethodRegistry().rule(spec.score), ForwardFlops(100.0), counters)

    assert cost is not None
    assert cost.compute_ratio == pytest.approx(
        relative_compute(cost.expected_savings, 1.0, 0.0, ratio=2, charge_online_training=updates_of_the_copy)
    )


def test_a_reference_as_dear_as_the_whole_training_never_pays() -> None:
    assert break_even_savings(0.1, 1.0, ratio=2) >= 1


def test_a_reference_that_is_trained_on_the_way_costs_as_its_share_of_the_sub_batch() -> None:
    # 1 + 0.1 + 0.2 · 1.5 + (2/3)(0.1 + 0.2), and nothing beforehand.
    settings = {"charge_reference_training": 0.0, "charge_reference_updates": 1.5}
    assert relative_compute(0.25, 0.1, 0.2, 2, **settings) == pytest.approx(0.75 * 1.6)
    assert break_even_savings(0.1, 0.2, 2, **settings) == pytest.approx(1 - 1 / 1.6)
