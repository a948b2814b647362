"""Score rules: from losses to one score per candidate. Pure functions of numpy arrays.

A rule says what it needs by the names of its parameters, which are among `MEASURED`. A new rule is one function here
and one line in `method_registry.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

MEASURED = ("learner_losses", "learner_gradient_norms", "reference_losses")
"""What scorers measure of every candidate, float32 `[B]` each."""


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


def gradient_norm(learner_gradient_norms: Array) -> Array:
    """Prioritises what would change the learner most: a bound of the norm of the example's gradient.

    Args:
        learner_gradient_norms: float32 `[B]`, the norm of the loss' gradient with respect to what the learner's last
            layer gives, before the softmax; the task computes it.

    Returns:
        float32 `[B]`, 0 or above.

    With selector `proportional` and its importance weights this is importance sampling.

    Source: Katharopoulos & Fleuret, arXiv 1803.00942, their upper bound without the factor that all examples share.
    """
    return learner_gradient_norms


@dataclass(frozen=True)
class ScoreRule:
    """A score function and what it needs, in the order of its parameters; without a function every score is 0.

    Raises:
        ValueError: the function has a parameter that nobody measures, or none.
    """

    function: Callable[..., Array] | None
    needs: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        needs = tuple(inspect.signature(self.function).parameters) if self.function is not None else ()
        if not set(needs) <= set(MEASURED) or (self.function is not None and not needs):
            raise ValueError(f"its parameters are {list(needs)}; name one or more of {list(MEASURED)}")
        object.__setattr__(self, "needs", needs)

    @property
    def needs_learner(self) -> bool:
        """Whether it reads anything of the learner copy."""
        return any(name.startswith("learner") for name in self.needs)

    @property
    def needs_reference(self) -> bool:
        """Whether it reads anything of the reference."""
        return any(name.startswith("reference") for name in self.needs)

    def __call__(self, rows: int, **measured: Array | None) -> Array:
        """Returns the scores, float32 `[rows]`, from what was measured, by the names of `MEASURED`.

        Overflow gives an infinite score, which the selectors leave out.
        """
        if self.function is None:
            return np.zeros(rows, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            return self.function(*(measured[name] for name in self.needs))
