"""Score rules: from losses to one score per candidate. Pure functions of numpy arrays.

A new rule is one function and one line in `SCORE_RULES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def hard_learner(learner_losses: Array) -> Array:
    """Prioritises what the learner finds hard: `ℓ(x | θ_learner)`.

    Args:
        learner_losses: float32 `[B]`.

    Returns:
        float32 `[B]`.

    Source: Evans et al., arXiv 2312.05328, section 3. Collapses under label noise.
    """
    return learner_losses


def easy_reference(reference_losses: Array) -> Array:
    """Prioritises what the reference finds easy: `-ℓ(x | θ_reference)`.

    Args:
        reference_losses: float32 `[B]`.

    Returns:
        float32 `[B]`.

    For task `image_text` the loss is the negative cosine of a pair's embeddings, so this is CLIPScore (Hessel et al.,
    EMNLP 2021) up to its constant factor and its cut at 0.

    Source: Evans et al., arXiv 2312.05328, section 3.
    """
    return -reference_losses


def learnability(learner_losses: Array, reference_losses: Array) -> Array:
    """Prioritises what is not learnt yet but learnable: `ℓ(x | θ_learner) - ℓ(x | θ_reference)`.

    Args:
        learner_losses: float32 `[B]`.
        reference_losses: float32 `[B]`.

    Returns:
        float32 `[B]`, the sum of `hard_learner` and `easy_reference`.

    Source: Evans et al., arXiv 2312.05328, Algorithm 1; RHO-LOSS (Mindermann et al., ICML 2022) is
    the same function with a reference trained on hold-out data.
    """
    return learner_losses - reference_losses


@dataclass(frozen=True)
class ScoreRule:
    """A score function and the losses that it needs, in the order of its arguments."""

    function: Callable[..., Array] | None
    needs_learner: bool
    needs_reference: bool

    def __call__(self, rows: int, learner_losses: Array | None, reference_losses: Array | None) -> Array:
        """Returns the scores, float32 `[rows]`; zeros for the rule that needs no losses.

        Overflow gives an infinite score, which the selectors leave out.
        """
        if self.function is None:
            return np.zeros(rows, np.float32)
        losses = (learner_losses if self.needs_learner else None, reference_losses if self.needs_reference else None)
        with np.errstate(over="ignore", invalid="ignore"):
            return self.function(*(loss for loss in losses if loss is not None))


SCORE_RULES: dict[str, ScoreRule] = {
    "uniform": ScoreRule(None, needs_learner=False, needs_reference=False),
    "hard_learner": ScoreRule(hard_learner, needs_learner=True, needs_reference=False),
    "easy_reference": ScoreRule(easy_reference, needs_learner=False, needs_reference=True),
    "learnability": ScoreRule(learnability, needs_learner=True, needs_reference=True),
}
"""Every score rule by the name that a run gives it."""
