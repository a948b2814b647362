"""What a selected run costs beside a uniform one, in compute. Pure arithmetic."""

from __future__ import annotations

import math

PAPER_SAVINGS = 0.46
"""Share of learner updates saved in classification, by the paper's abstract: what is expected where nothing is said."""


def relative_compute(
    savings: float,
    f_online: float,
    f_reference: float,
    ratio: float,
    charge_reference_training: float = 1.0,
    charge_online_training: float = 1.0,
    charge_reference_scoring: float = 1.0,
    charge_reference_updates: float = 0.0,
) -> float:
    """Returns the compute of a selected run over that of the uniform run that reaches the same quality.

        (1 − s) · [1 + f · T_o + f_r · U_r + (ρ/3)(f + f_r · S_r)] + f_r · T_r

    Below 1 selection pays for itself. A forward pass counts 1, a backward pass 2, so the learner's update of b examples
    is the 1; f trains the online model on the same b; (ρ/3)(f + f_r) is the forward pass of both over all B candidates.

    Args:
        savings: s, the share of learner updates saved; below 0 where the selected run needed more, below 1.
        f_online: f, FLOPs of the online model's forward pass over the learner's; 0 or above.
        f_reference: f_r, the same for the reference model; 0 or above.
        ratio: ρ = B / b, super-batch over sub-batch; 0 or above: below 1 where scores serve more than once, or not all
            that was selected was scored for.
        charge_reference_training: T_r, examples the reference was trained on over those of the uniform run: 1 as in the
            paper's figure, 0 where it was there already, and what was really used where that is known.
        charge_online_training: T_o, 1 where the online model is trained beside the learner as in the paper, 0 where
            the scorers hold a copy of the learner itself.
        charge_reference_scoring: S_r, the share of candidates that the reference scores during training: 0 where its
            losses were computed before.
        charge_reference_updates: U_r, examples that the reference is trained on beside the learner, over b.

    Returns:
        A ratio; 1 is the uniform run.

    Raises:
        ValueError: a number is out of its range, or not finite.

    Source: Evans et al., arXiv 2312.05328, the amortisation of its compute figure; the formula is ours and gives that
    figure's numbers.
    """
    if not (math.isfinite(savings) and savings < 1):
        raise ValueError(f"savings is {savings}; it must be below 1, and finite")
    training = _reference_training(f_reference, charge_reference_training)
    return (1 - savings) * _per_update(
        f_online, f_reference, ratio, charge_online_training, charge_reference_scoring, charge_reference_updates
    ) + training


def break_even_savings(
    f_online: float,
    f_reference: float,
    ratio: float,
    charge_reference_training: float = 1.0,
    charge_online_training: float = 1.0,
    charge_reference_scoring: float = 1.0,
    charge_reference_updates: float = 0.0,
) -> float:
    """Returns the share of learner updates that must be saved for `relative_compute` to be 1.

        1 − (1 − f_r · T_r) / [1 + f · T_o + f_r · U_r + (ρ/3)(f + f_r · S_r)]

    1 or above where no saving suffices. Arguments, errors and source as `relative_compute`.
    """
    training = _reference_training(f_reference, charge_reference_training)
    return 1 - (1 - training) / _per_update(
        f_online, f_reference, ratio, charge_online_training, charge_reference_scoring, charge_reference_updates
    )


def _per_update(
    f_online: float,
    f_reference: float,
    ratio: float,
    charge_online_training: float,
    charge_reference_scoring: float,
    charge_reference_updates: float,
) -> float:
    _check("f_online", f_online, 0.0)
    _check("f_reference", f_reference, 0.0)
    _check("ratio", ratio, 0.0)
    _check("charge_online_training", charge_online_training, 0.0)
    _check("charge_reference_scoring", charge_reference_scoring, 0.0)
    _check("charge_reference_updates", charge_reference_updates, 0.0)
    scoring = f_online + f_reference * charge_reference_scoring
    training = f_online * charge_online_training + f_reference * charge_reference_updates
    return 1 + training + ratio / 3 * scoring


def _reference_training(f_reference: float, charge_reference_training: float) -> float:
    _check("charge_reference_training", charge_reference_training, 0.0)
    return f_reference * charge_reference_training


def _check(name: str, value: float, least: float) -> None:
    if not (math.isfinite(value) and value >= least):
        raise ValueError(f"{name} is {value}; it must be {least:g} or above, and finite")
