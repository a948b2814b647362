"""What a selected run costs beside a uniform one, in compute. Called by the demo; pure arithmetic."""

from __future__ import annotations

import math


def relative_compute(
    savings: float,
    f_online: float,
    f_reference: float,
    ratio: float,
    charge_reference_training: float = 1.0,
) -> float:
    """Returns the compute of a selected run over that of the uniform run that reaches the same quality.

        (1 − s) · [1 + f + (ρ/3)(f + f_r)] + f_r · T_r

    Below 1 selection pays for itself. A forward pass counts 1, a backward pass 2, so the learner's update of b examples
    is the 1; f trains the online model on the same b; (ρ/3)(f + f_r) is the forward pass of both over all B candidates.

    Args:
        savings: s, the share of learner updates saved; below 0 where the selected run needed more, below 1.
        f_online: f, FLOPs of the online model's forward pass over the learner's; 0 or above.
        f_reference: f_r, the same for the reference model; 0 or above.
        ratio: ρ = B / b, super-batch over sub-batch; 1 or above.
        charge_reference_training: T_r, examples the reference was trained on over those of the uniform run: 1 as in the
            paper's figure, 0 where it was there already, and what was really used where that is known.

    Returns:
        A ratio; 1 is the uniform run.

    Raises:
        ValueError: a number is out of its range, or not finite.

    Source: Evans et al., arXiv 2312.05328, the amortisation of its compute figure; the formula is ours and gives that
    figure's numbers.
    """
    for name, value, least in (
        ("f_online", f_online, 0.0),
        ("f_reference", f_reference, 0.0),
        ("ratio", ratio, 1.0),
        ("charge_reference_training", charge_reference_training, 0.0),
    ):
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"{name} is {value}; it must be {least:g} or above, and finite")
    if not (math.isfinite(savings) and savings < 1):
        raise ValueError(f"savings is {savings}; it must be below 1, and finite")
    per_update = 1 + f_online + ratio / 3 * (f_online + f_reference)
    return (1 - savings) * per_update + f_reference * charge_reference_training
