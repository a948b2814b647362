"""What the runs say: fewer updates, compute, seconds. Pure functions of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rung:
    """One run of an arm.

    Attributes:
        quality: of the learner at its end; larger is better.
        flops: of everything.
        cpu_s: of everything.
    """

    quality: float
    flops: float
    cpu_s: float


Rungs = Mapping[float, Rung]
"""Budget as a share of the uniform arm's full one → run. The full budget is 1."""


@dataclass(frozen=True)
class Verdict:
    """One arm beside the uniform arm, of one seed.

    Attributes:
        reached_at: smallest budget whose quality is the uniform arm's full-budget one or better; None: none.
        flops_ratio: operations up to there over those of the uniform arm's full budget; None where not reached.
        cpu_ratio: the same of processor seconds.
        gain: quality at the full budget less the uniform arm's.
    """

    reached_at: float | None
    flops_ratio: float | None
    cpu_ratio: float | None
    gain: float

    @property
    def fewer_updates(self) -> float:
        """Share of updates saved; 0 where only the full budget reached it, or none."""
        return 1 - (1.0 if self.reached_at is None else self.reached_at)


def verdict(arm: Rungs, uniform: Rungs) -> Verdict:
    """Compares an arm with the uniform one of the same seed.

    Every rung was trained for its own budget with its own decayed learning rate, so nothing is read off a curve.

    Raises:
        KeyError: one of them lacks the full budget.
    """
    target = uniform[1.0]
    reached = [budget for budget, rung in arm.items() if rung.quality >= target.quality]
    gain = arm[1.0].quality - target.quality
    if not reached:
        return Verdict(None, None, None, gain)
    there = arm[min(reached)]
    return Verdict(min(reached), there.flops / target.flops, there.cpu_s / target.cpu_s, gain)
