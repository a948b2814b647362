"""Uplift on simulated training whose true gain is known: right on average, and its interval as honest as it says."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from preceptor import RunSpec
from preceptor_service.schedule import is_held_back
from preceptor_service.uplift import (
    Interval,
    Series,
    block_interval,
    control_uplift,
    fewer_updates,
    is_less_better,
    t_interval,
    t_quantile,
    twin_uplift,
    welch_interval,
)

TRIALS = 300


def series(values: NDArray[np.float64], every: int = 10) -> Series:
    return Series(np.arange(1, len(values) + 1) * every, values)


def curve(reports: int, ceiling: float, rng: np.random.Generator, noise: float = 0.01) -> NDArray[np.float64]:
    """An accuracy that rises to `ceiling`."""
    progress = 1 - np.exp(-np.arange(1, reports + 1) / (reports / 5))
    return ceiling * progress + rng.normal(0, noise, reports)


def coverage(make: Callable[[np.random.Generator], Interval | None], true: float) -> float:
    """The share of trials whose interval holds the true value."""
    held = 0
    for trial in range(TRIALS):
        interval = make(np.random.default_rng(trial))
        assert interval is not None
        assert interval.low is not None
        assert interval.high is not None
        held += interval.low <= true <= interval.high
    return held / TRIALS


@pytest.mark.parametrize(
    ("probability", "degrees", "point"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 9, 2.262),
        (0.975, 30, 2.042),
        (0.975, 120, 1.980),
        (0.95, 5, 2.015),
        (0.995, 4, 4.604),
        (0.975, 1000, 1.962),
    ],
)
def test_quantiles_of_students_t_are_those_of_the_printed_tables(
    probability: float, degrees: float, point: float
) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(point, abs=6e-4)


def test_intervals_of_a_worked_example() -> None:
    pairs = t_interval(np.array([0.01, 0.02, 0.03]))
    assert (pairs.estimate, pairs.low, pairs.high) == pytest.approx((0.02, -0.00484, 0.04484), abs=1e-5)
    # Means 20.5 and 19.0, variances 5/3 and 10/3, n = 4: standard error √1.25, 5.4 degrees, t = 2.515.
    two = welch_interval(np.array([19.0, 20, 21, 22]), np.array([17.0, 18, 20, 21]))
    assert (two.estimate, two.low, two.high) == pytest.approx((1.5, -1.313, 4.313), abs=2e-3)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_over_pairs_covers_what_another_seed_would_give(seeds: int) -> None:
    def compared(rng: np.random.Generator) -> Interval | None:
        pairs = [
            (series(curve(30, 0.9 + rng.normal(0, 0.01), rng)), series(curve(30, 0.87 + rng.normal(0, 0.01), rng)))
            for _ in range(seeds)
        ]
        found = twin_uplift(pairs, less_is_better=False)
        assert found is not None
        assert (found.method, found.pairs, found.common_steps) == ("pairs", seeds, 30)
        return found.gain

    late = 0.03 * np.mean((1 - np.exp(-np.arange(1, 31) / 6))[15:])
    assert 0.92 <= coverage(compared, float(late)) <= 0.98


@pytest.mark.parametrize("count", [6, 12, 40])
@pytest.mark.parametrize("memory", [0.0, 0.4])
def test_the_interval_of_one_pair_covers_noise_that_remembers(count: int, memory: float) -> None:
    def bootstrapped(rng: np.random.Generator) -> Interval:
        noise = rng.normal(0, 1, count + 20)
        for at in range(1, len(noise)):
            noise[at] += memory * noise[at - 1]
        return block_interval(0.3 + noise[20:], 4)

    assert coverage(bootstrapped, 0.3) >= 0.89


@pytest.mark.parametrize("effect", [0.0, 0.002])
def test_held_back_blocks_find_the_effect_amid_gains_that_shrink(effect: float) -> None:
    block_steps, blocks = 5, 80

    def compared(rng: np.random.Generator) -> Interval | None:
        spec = RunSpec("held", model="m", control_fraction=0.3, control_block_steps=5, seed=int(rng.integers(2**60)))
        gains = 0.01 * np.exp(-np.arange(blocks) / 20)
        gains += [0.0 if is_held_back(spec, block * block_steps) else effect * block_steps for block in range(blocks)]
        values = np.concatenate([[0.1], 0.1 + np.cumsum(gains)]) + rng.normal(0, 0.002, blocks + 1)
        reported = Series(np.arange(blocks + 1) * block_steps, values)
        found = control_uplift(reported, block_steps, lambda step: is_held_back(spec, step), less_is_better=False)
        assert found is not None
        assert found.selected_blocks + found.control_blocks == blocks
        return found.gain

    assert 0.92 <= coverage(compared, effect) <= 0.99


def test_of_a_loss_less_is_better() -> None:
    rng = np.random.default_rng(0)
    run, twin = (series(2.0 - curve(40, ceiling, rng, noise=0.001)) for ceiling in (1.0, 0.9))
    found = twin_uplift([(run, twin)], less_is_better=True)
    assert found is not None
    assert found.gain.low is not None
    assert found.gain.low > 0.05
    assert found.gain.excludes_zero
    assert [is_less_better(name) for name in ("test_accuracy", "val/Loss", "top1-error", "perplexity")] == [0, 1, 1, 1]


def test_fewer_updates_are_counted_until_both_reach_what_the_twin_ends_at() -> None:
    twin = Series(np.arange(1, 11) * 100, np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.78, 0.82, 0.78]))
    run = Series(np.arange(1, 11) * 100, np.minimum(0.9, np.arange(1, 11) * 0.2))
    # The twin ends at 0.8, the mean of its last two reports, and is there at 900; the run at 400.
    assert fewer_updates(run, twin, less_is_better=False) == pytest.approx(1 - 400 / 900)
    never = Series(run.steps, np.full(10, 0.5))
    assert fewer_updates(never, twin, less_is_better=False) is None
    slower = Series(np.array([1000, 1800]), np.array([0.5, 0.8]))
    assert fewer_updates(slower, twin, less_is_better=False) == pytest.approx(-1.0)


def test_too_little_gives_an_estimate_without_an_interval_or_nothing() -> None:
    rng = np.random.default_rng(1)
    short = twin_uplift([(series(curve(6, 0.9, rng)), series(curve(6, 0.8, rng)))], less_is_better=False)
    assert short is not None
    assert short.gain.low is None
    assert not short.gain.excludes_zero
    apart = (Series(np.array([1, 3]), np.zeros(2)), Series(np.array([2, 4]), np.zeros(2)))
    assert twin_uplift([apart], less_is_better=False) is None
    few = control_uplift(series(np.arange(6.0)), 10, lambda step: step >= 40, less_is_better=False)
    assert few is not None
    assert (few.control_blocks, few.gain.low) == (2, None)
    assert control_uplift(series(np.arange(6.0)), 10, lambda step: False, less_is_better=False) is None
    assert control_uplift(Series(np.empty(0, np.int64), np.empty(0)), 10, lambda step: True, False) is None


def test_reports_that_straddle_blocks_are_not_put_down_to_either() -> None:
    reported = Series(np.array([0, 15, 30, 32, 38, 40]), np.array([0.0, 9.0, 10.0, 10.4, 10.6, 11.0]))
    found = control_uplift(reported, 10, lambda step: step // 10 == 3, less_is_better=False)
    assert found is None  # block 3 alone has two reports
    both = control_uplift(
        Series(np.array([0, 10, 30, 40]), np.array([0.0, 1.0, 5.0, 5.5])), 10, lambda step: step // 10 == 3, False
    )
    assert both is not None
    assert both.gain.estimate == pytest.approx(0.1 - 0.05)


def test_the_same_reports_give_the_same_interval() -> None:
    values = np.random.default_rng(3).normal(size=30)
    assert block_interval(values, 4) == block_interval(values.copy(), 4)
    assert not math.isnan(block_interval(np.zeros(4), 4).estimate)
    assert block_interval(np.zeros(4), 4).low == 0
