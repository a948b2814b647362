"""The schedule of a run: how much of a sub-batch is drawn by score at a step. Pure functions of settings and step."""

from __future__ import annotations

import math

from preceptor.runs import RunSpec


def share_by_score(spec: RunSpec, step: int) -> float:
    """Returns the share of the sub-batch of `step` that is drawn by score, from 0 to 1; the rest is drawn uniformly.

        (1 - uniform_share) · min(1, (step - select_from_step) / warm_up_steps)

    and 0 before `select_from_step` and from `select_until_step` on. Without a warm-up the second factor is 1.

    Source: none; warm-up and mixing with uniform draws are common to importance sampling and curricula.
    """
    if step < spec.select_from_step or (spec.select_until_step is not None and step >= spec.select_until_step):
        return 0.0
    since_start = step - spec.select_from_step
    ramp = since_start / spec.warm_up_steps if since_start < spec.warm_up_steps else 1.0
    return (1.0 - spec.uniform_share) * ramp


def count_by_score(spec: RunSpec, step: int, sub_batch_size: int) -> int:
    """Returns how many of the `sub_batch_size` examples of `step` are drawn by score: the share, rounded half up."""
    return math.floor(share_by_score(spec, step) * sub_batch_size + 0.5)
