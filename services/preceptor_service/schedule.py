"""The schedule of a run: how much of a sub-batch is drawn by score at a step, and which steps are held back.

Pure functions of settings and step.
"""

from __future__ import annotations

import math

from preceptor.runs import RunSpec
from preceptor_service.randomness import uniforms

_CONTROL_RANK = 2**64 - 1
"""No trainer has this rank, so no draw shares its random numbers with the choice of the steps that are held back."""


def share_by_score(spec: RunSpec, step: int) -> float:
    """Returns the share of the sub-batch of `step` that is drawn by score, from 0 to 1; the rest is drawn uniformly.

        (1 - uniform_share) · min(1, (step - select_from_step) / warm_up_steps)

    and 0 before `select_from_step`, from `select_until_step` on, and where the step is held back. Without a warm-up the
    second factor is 1.

    Source: none; warm-up and mixing with uniform draws are common to importance sampling and curricula.
    """
    if is_held_back(spec, step) or not _is_selecting(spec, step):
        return 0.0
    since_start = step - spec.select_from_step
    ramp = since_start / spec.warm_up_steps if since_start < spec.warm_up_steps else 1.0
    return (1.0 - spec.uniform_share) * ramp


def is_held_back(spec: RunSpec, step: int) -> bool:
    """Tells whether `step` belongs to the control arm: it would be drawn by score, and its block was drawn for it.

    Each block of `control_block_steps` steps is held back with probability `control_fraction`, by a number of Philox
    keyed by (seed, run, block), whatever happens in the run.
    """
    if spec.control_fraction == 0 or not _is_selecting(spec, step):
        return False
    block = step // spec.control_block_steps
    return bool(uniforms(spec.seed, spec.run_id, block, _CONTROL_RANK, 1)[0] < spec.control_fraction)


def count_by_score(spec: RunSpec, step: int, sub_batch_size: int) -> int:
    """Returns how many of the `sub_batch_size` examples of `step` are drawn by score: the share, rounded half up."""
    return math.floor(share_by_score(spec, step) * sub_batch_size + 0.5)


def _is_selecting(spec: RunSpec, step: int) -> bool:
    return spec.select_from_step <= step and (spec.select_until_step is None or step < spec.select_until_step)
