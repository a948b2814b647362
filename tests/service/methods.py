"""Score rules and selectors that an operator might add, and some that do not work."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from preceptor_service.selectors import SelectorSettings

Losses = NDArray[np.float32]


def closest_losses(reference_losses: Losses, learner_losses: Losses) -> Losses:
    """Prefers examples on which both models agree."""
    apart: Losses = np.abs(learner_losses - reference_losses)
    return -apart


def hard_and_steep(learner_losses: Losses, learner_gradient_norms: Losses) -> Losses:
    """Prefers what is hard and would change the learner."""
    return learner_losses * learner_gradient_norms


def moody(learner_losses: Losses) -> Losses:
    """Works for the trial's 8 candidates only."""
    return learner_losses if len(learner_losses) == 8 else learner_losses[1:]


def first_of_the_best(
    scores: Losses, count: int, uniforms: NDArray[np.float64], settings: SelectorSettings
) -> NDArray[np.int64]:
    """The first `count` candidates with a score at or above the mean of the finite ones, then the others."""
    finite = np.flatnonzero(np.isfinite(scores))
    is_worse = scores[finite] < scores[finite].mean()
    return finite[np.argsort(is_worse, kind="stable")][:count]


def without_parameters() -> Losses:
    return np.zeros(0, np.float32)


def of_the_weather(weather: Losses) -> Losses:
    return weather


def one_number(learner_losses: Losses) -> float:
    return float(learner_losses.mean())


def whole_numbers(learner_losses: Losses) -> NDArray[np.int64]:
    return learner_losses.astype(np.int64)


def for_scalars(learner_losses: Losses) -> Losses:
    return learner_losses if learner_losses > 1 else -learner_losses


_calls = itertools.count()


def changing(learner_losses: Losses) -> Losses:
    return learner_losses + np.float32(next(_calls))


def twice_the_same(scores: Losses, count: int, uniforms: Losses, settings: SelectorSettings) -> NDArray[np.int64]:
    return np.zeros(count, np.int64)


def too_many(scores: Losses, count: int, uniforms: Losses, settings: SelectorSettings) -> NDArray[np.int64]:
    return np.arange(count + 1)


def whatever_comes_first(scores: Losses, count: int, uniforms: Losses, settings: SelectorSettings) -> NDArray[np.int64]:
    return np.arange(count)


not_a_function = 7
