"""What selection gained over uniform draws, with an interval. Pure functions of numpy arrays; called by the report.

Two comparisons: with twin runs that drew uniformly at the same budget, and with the steps that one run held back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
"""Probability with which an interval is meant to hold the true value."""
MIN_COMMON_STEPS = 8
"""Steps that two runs must both have reported before one pair is given an interval."""
MIN_BLOCKS = 4
"""Blocks of each kind, selected and held back, before held-back steps are given an interval."""

_RESAMPLES = 1_000
_T_GRID = 20_001
_LESS_IS_BETTER = ("loss", "error", "perplexity")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """One metric over steps: int64 `[N]` ascending, and float64 `[N]`."""

    steps: NDArray[np.int64]
    values: Floats


@dataclass(frozen=True)
class Interval:
    """An estimate, and from where to where it is uncertain; `low` and `high` are None where too little is known."""

    estimate: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign is certain at `CONFIDENCE`."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class TwinUplift:
    """A run, or several with different seeds, beside as many that drew uniformly.

    Attributes:
        gain: of the metric, mean over the later half of the steps that both reported; above 0: selection is better.
        method: `"pairs"`: t-interval over pairs, which covers the seeds; `"blocks"`: one pair, moving-block bootstrap
            over its steps, which covers the noise between reports and not what another seed would give.
        pairs: how many pairs were compared.
        common_steps: reported by both, of the pair that has fewest.
        fewer_updates: by pair, the share of updates saved until the twin's final value was reached; None: it was not.
    """

    gain: Interval
    method: str
    pairs: int
    common_steps: int
    fewer_updates: tuple[float | None, ...]


@dataclass(frozen=True)
class ControlUplift:
    """The steps of one run beside those that it held back.

    Attributes:
        gain: of the metric per step, over selected blocks minus over held-back ones, above 0 where selection is better.
        selected_blocks, control_blocks: how many could be told apart by what was reported.
    """

    gain: Interval
    selected_blocks: int
    control_blocks: int


def is_less_better(name: str) -> bool:
    """Tells by its name whether less of a metric is better."""
    return any(word in name.lower() for word in _LESS_IS_BETTER)


def twin_uplift(pairs: Sequence[tuple[Series, Series]], less_is_better: bool) -> TwinUplift | None:
    """Compares pairs (run, twin), each with a seed of its own; None where a pair has no step in common.

    Per pair: the differences at common steps, of their later half the mean. Of several pairs the mean, with Student's
    t; of one the moving-block bootstrap of its later half.

    Source: Künsch 1989 for moving blocks; Kaddour et al., arXiv 2307.06440, for equal budgets.
    """
    sign = -1.0 if less_is_better else 1.0
    late, common_steps, savings = [], [], []
    for run, twin in pairs:
        steps, at_run, at_twin = np.intersect1d(run.steps, twin.steps, return_indices=True)
        if not len(steps):
            return None
        differences = sign * (run.values[at_run] - twin.values[at_twin])
        late.append(differences[len(steps) // 2 :])
        common_steps.append(len(steps))
        savings.append(fewer_updates(run, twin, less_is_better))
    if len(pairs) > 1:
        gain, method = t_interval(np.array([np.mean(one) for one in late])), "pairs"
    else:
        gain, method = block_interval(late[0], min_count=MIN_COMMON_STEPS // 2), "blocks"
    return TwinUplift(gain, method, len(pairs), min(common_steps), tuple(savings))


def fewer_updates(run: Series, twin: Series, less_is_better: bool) -> float | None:
    """Returns 1 − (steps until the run reached the twin's final value) / (steps until the twin did), or None.

    The final value is the mean of the twin's last fifth, and reached at the first report that is as good: the same rule
    for both, so that a lucky report favours neither. Without a decayed learning rate this flatters whoever learns fast
    at first; a ladder of budgets, each decayed, does not.
    """
    sign = -1.0 if less_is_better else 1.0
    target = float(np.mean(sign * twin.values[-max(1, len(twin.values) // 5) :]))
    reached = [series.steps[sign * series.values >= target] for series in (run, twin)]
    if any(not len(steps) for steps in reached) or reached[1][0] == 0:
        return None
    return 1.0 - float(reached[0][0] / reached[1][0])


def control_uplift(
    series: Series, block_steps: int, is_held_back: Callable[[int], bool], less_is_better: bool
) -> ControlUplift | None:
    """Compares what the metric gained per step over selected blocks and over held-back ones; None where there are none.

    A block counts where two reports lie in it, its ends included: the steps between them were drawn in one way. Blocks
    were drawn for the control arm by chance, so Welch's interval is sound although gains shrink as training goes on;
    that only makes it wide. It measures one block of selection amid a run that mostly selects, not a whole run.

    Args:
        series: the metric, its step s measured after the steps below s.
        block_steps: the run's `control_block_steps`.
        is_held_back: of a step.
        less_is_better: whether the metric falls as the learner gets better.
    """
    sign = -1.0 if less_is_better else 1.0
    gains: dict[bool, list[float]] = {False: [], True: []}
    steps, values = series.steps, sign * series.values
    first = int(steps[0]) // block_steps if len(steps) else 0
    last = int(steps[-1]) // block_steps if len(steps) else -1
    starts = np.searchsorted(steps, np.arange(first, last + 1) * block_steps, side="left")
    ends = np.searchsorted(steps, np.arange(first + 1, last + 2) * block_steps, side="right") - 1
    for number, (start, end) in enumerate(zip(starts, ends, strict=True), first):
        if end > start:
            gain = (values[end] - values[start]) / float(steps[end] - steps[start])
            gains[is_held_back(number * block_steps)].append(float(gain))
    selected, control = np.array(gains[False]), np.array(gains[True])
    if not len(selected) or not len(control):
        return None
    return ControlUplift(welch_interval(selected, control), len(selected), len(control))


def t_interval(values: Floats) -> Interval:
    """Returns mean ± t · s / √n of independent `values`, float64 `[n]`, n ≥ 1; without ends for n = 1."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, None, None)
    half = t_quantile((1 + CONFIDENCE) / 2, len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def welch_interval(first: Floats, second: Floats) -> Interval:
    """Returns the difference of two means with Welch's interval, its degrees of freedom by Welch and Satterthwaite.

    Without ends where either has fewer than `MIN_BLOCKS` values.
    """
    estimate = float(np.mean(first) - np.mean(second))
    if min(len(first), len(second)) < MIN_BLOCKS:
        return Interval(estimate, None, None)
    parts = [float(np.var(values, ddof=1)) / len(values) for values in (first, second)]
    total = sum(parts)
    if total == 0:
        return Interval(estimate, estimate, estimate)
    counts = (len(first) - 1, len(second) - 1)
    degrees = total**2 / sum(part**2 / count for part, count in zip(parts, counts, strict=True))
    half = t_quantile((1 + CONFIDENCE) / 2, degrees) * math.sqrt(total)
    return Interval(estimate, estimate - half, estimate + half)


def block_interval(values: Floats, min_count: int) -> Interval:
    """Returns the mean of a time series, with the ends of a moving-block bootstrap; without ends below `min_count`.

    Blocks of ⌈n^(1/3)⌉ + 1 neighbours are drawn with replacement until there are n values. The spread of their means
    is widened by √(n / (n − block)), which short series need, and taken with Student's t of n / block − 1 degrees.
    Always the same random numbers, so that a report can be made again.
    """
    mean, count = float(np.mean(values)), len(values)
    if count < min_count:
        return Interval(mean, None, None)
    block = min(math.ceil(count ** (1 / 3)) + 1, count // 2)
    rng = np.random.Generator(np.random.Philox(key=0))
    starts = rng.integers(0, count - block + 1, size=(_RESAMPLES, math.ceil(count / block)))
    drawn = (starts[:, :, None] + np.arange(block)).reshape(_RESAMPLES, -1)[:, :count]
    spread = float(np.std(values[drawn].mean(axis=1))) * math.sqrt(count / (count - block))
    half = t_quantile((1 + CONFIDENCE) / 2, max(1.0, count / block - 1)) * spread
    return Interval(mean, mean - half, mean + half)


def t_quantile(probability: float, degrees: float) -> float:
    """Returns the point below which Student's t lies with `probability`, from 0.5 to 1, for `degrees` ≥ 1; to 1 in 10⁴.

    By integrating the density over arcs, t = √ν · tan θ, where it is cos^(ν − 1) θ: smooth and bounded for every ν.
    """
    edge = math.pi / 2
    angles = np.linspace(0, edge, _T_GRID)
    density = np.cos(angles[:-1]) ** (degrees - 1)
    density = np.append(density, 1.0 if degrees == 1 else 0.0)
    areas = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = float(np.interp((probability - 0.5) * 2, areas / areas[-1], angles))
    return math.sqrt(degrees) * math.tan(angle)
