"""Which steps make which version of a co-trained online model, and how fast each step learns. Pure functions."""

from __future__ import annotations

import math
from typing import NamedTuple

from preceptor.co_training import CoTraining


class Handout(NamedTuple):
    """What names a sub-batch that was handed out. Sorted as it is trained on."""

    step: int
    rank: int


def block_of(spec: CoTraining, step: int) -> int:
    """Returns the block of `step`, which is `first_step` or above."""
    return (step - spec.first_step) // spec.publish_every


def first_step_of(spec: CoTraining, block: int) -> int:
    """Returns the first step of `block`."""
    return spec.first_step + block * spec.publish_every


def handouts_of(spec: CoTraining, block: int) -> tuple[Handout, ...]:
    """Returns what `block` is trained on, in order: by step, then by rank."""
    first = first_step_of(spec, block)
    return tuple(Handout(step, rank) for step in range(first, first + spec.publish_every) for rank in range(spec.ranks))


def version_for(spec: CoTraining, step: int) -> int:
    """Returns the learner version that scores `step`: a function of the step alone."""
    return max(0, block_of(spec, step) - spec.lag) + 1


def block_after(version: int) -> int:
    """Returns the block that training `version` on gives the next version."""
    return version - 1


def learning_rate(spec: CoTraining, step: int) -> float:
    """Returns the learning rate of the update of `step`.

    With u = step − first_step, w = warm_up_steps, T = total_steps: lr·(u + 1)/w for u < w, then
    lr·(1 + cos(π·(u − w)/(T − w)))/2 until T, and 0 from there on; lr where there is no T.
    """
    update, warm_up, total = step - spec.first_step, spec.warm_up_steps, spec.total_steps
    if update < warm_up:
        return spec.learning_rate * (update + 1) / warm_up
    if total is None:
        return spec.learning_rate
    if update >= total:
        return 0.0
    return spec.learning_rate * (1 + math.cos(math.pi * (update - warm_up) / (total - warm_up))) / 2
