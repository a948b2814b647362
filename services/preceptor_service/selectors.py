"""Selectors: from scores to the positions of a sub-batch. Pure functions of numpy arrays.

All draw without replacement, leave out candidates whose score is not finite, and break ties by
position. A new selector is one function here and one line in `method_registry.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preceptor.errors import NonFiniteScoresError
from preceptor_service.randomness import gumbels

Scores = NDArray[np.float32]
Uniforms = NDArray[np.float64]
Indices = NDArray[np.int64]
LogProbabilities = NDArray[np.float64]

PRIORITY_OF_NOTHING = 1e-6
"""ε of `proportional`: the priority of a candidate whose score is 0 or below."""


@dataclass(frozen=True)
class SelectorSettings:
    """What a run says about its selector; each reads what it needs.

    Attributes:
        temperature: of `softmax`; above 0.
        priority_exponent: α of `proportional`; 0 or above.
        importance_exponent: β of the importance weights; from 0 to 1.
    """

    temperature: float = 1.0
    priority_exponent: float = 1.0
    importance_exponent: float = 1.0


@dataclass(frozen=True)
class Selector:
    """How to draw: `draw(scores, count, uniforms, settings)`, int64 `[count]`, positions in the order drawn.

    `log_probabilities` gives the log of the chance that each candidate is drawn first, float64 `[B]`; a selector that
    has it answers importance weights.
    """

    draw: Callable[[Scores, int, Uniforms, SelectorSettings], Indices]
    log_probabilities: Callable[[Scores, SelectorSettings], LogProbabilities] | None = None


def softmax(scores: Scores, count: int, uniforms: Uniforms, settings: SelectorSettings) -> Indices:
    """Draws `count` candidates from softmax(scores / temperature), without replacement.

    The `count` largest of `score / temperature + Gumbel noise` are exactly such a draw, in the
    order drawn, in one pass.

    Args:
        scores: float32 `[B]`.
        count: b, at least 1.
        uniforms: float64 `[B]`, strictly between 0 and 1, one per candidate.
        settings: `temperature`; 1 is the paper's.

    Returns:
        int64 `[b]`, positions in the order drawn.

    Raises:
        NonFiniteScoresError: fewer than `count` scores are finite.

    Source: Evans et al., arXiv 2312.05328, Algorithm 1; Gumbel-top-k: Kool et al., ICML 2019.
    """
    return _largest(_finite(scores).astype(np.float64) / settings.temperature + gumbels(uniforms), count)


def top_k(scores: Scores, count: int, uniforms: Uniforms, settings: SelectorSettings) -> Indices:
    """Returns the `count` candidates with the largest scores, largest first.

    Args:
        scores: float32 `[B]`.
        count: b, at least 1.
        uniforms: not used.
        settings: not used.

    Returns:
        int64 `[b]`, positions by falling score.

    Raises:
        NonFiniteScoresError: fewer than `count` scores are finite.

    Source: RHO-LOSS, Mindermann et al., ICML 2022, Algorithm 1.
    """
    return _largest(_finite(scores).astype(np.float64), count)


def uniform(scores: Scores, count: int, uniforms: Uniforms, settings: SelectorSettings) -> Indices:
    """Draws `count` candidates with equal chances, without replacement: the control arm.

    Args:
        scores: float32 `[B]`, only to leave out those that are not finite.
        count: b, at least 1.
        uniforms: float64 `[B]`, one per candidate.
        settings: not used.

    Returns:
        int64 `[b]`, positions in the order drawn.

    Raises:
        NonFiniteScoresError: fewer than `count` scores are finite.
    """
    return _largest(np.where(np.isfinite(scores), uniforms, -np.inf), count)


def proportional(scores: Scores, count: int, uniforms: Uniforms, settings: SelectorSettings) -> Indices:
    """Draws `count` candidates one after the other, without replacement, each with probability ∝ p^α.

    p = max(score, 0) + ε. The `count` largest of `α · log p + Gumbel noise` are exactly such a draw.

    Args:
        scores: float32 `[B]`; best of a rule that is not negative: of one that is, whatever lies below 0 is left to ε.
        count: b, at least 1.
        uniforms: float64 `[B]`, strictly between 0 and 1, one per candidate.
        settings: `priority_exponent`, α; 0 draws uniformly.

    Returns:
        int64 `[b]`, positions in the order drawn.

    Raises:
        NonFiniteScoresError: fewer than `count` scores are finite.

    Source: Schaul et al., arXiv 1511.05952, equation 1, whose p = |error| + ε; they draw with replacement.
    """
    return _largest(_log_priorities(scores, settings) + gumbels(uniforms), count)


def proportional_log_probabilities(scores: Scores, settings: SelectorSettings) -> LogProbabilities:
    """Returns log P of `proportional`: P(i) = p_i^α / Σ p^α, the chance to be drawn first; float64 `[B]`."""
    logs = _log_priorities(scores, settings)
    logs -= logs.max()
    logs -= np.log(np.exp(logs).sum())
    return logs


def importance_weights(
    log_probabilities: LogProbabilities, chosen: Indices, share_by_score: float, exponent: float
) -> NDArray[np.float32]:
    """Returns (1 / (B · P(i)))^β for each of `chosen`, over the largest of them: float32 `[b]`, from 0 to 1.

    P is the chance of one draw; where a share c of the sub-batch is drawn by score and the rest uniformly it is
    c · P(i) + (1 - c) / n, n candidates having a finite score. With β = 1 a mean over the sub-batch that is weighted
    like this stands for the mean over the super-batch. It would do so exactly for draws with replacement; without,
    the chance to be in the sub-batch is below b · P(i) for likely candidates and above it for unlikely ones, so that
    the weights correct too much where b · P(i) is not small.

    Args:
        log_probabilities: float64 `[B]`, minus infinity where the score is not finite.
        chosen: int64 `[b]`.
        share_by_score: c, above 0, at most 1.
        exponent: β, from 0 (every weight is 1) to 1.

    Source: Schaul et al., arXiv 1511.05952, section 3.4.
    """
    log_chances = log_probabilities[chosen]
    if share_by_score < 1:
        evenly = np.log((1 - share_by_score) / np.isfinite(log_probabilities).sum())
        log_chances = np.logaddexp(np.log(share_by_score) + log_chances, evenly)
    weights: NDArray[np.float64] = np.exp(exponent * (log_chances.min() - log_chances))
    return weights.astype(np.float32)


def topped_up(chosen: Indices, scores: Scores, count: int, uniforms: Uniforms) -> Indices:
    """Returns `chosen`, then candidates drawn uniformly from the others, `count` together.

    Args:
        chosen: int64 `[k]`, all different.
        scores: float32 `[B]`, only to leave out those that are not finite.
        count: b, more than k.
        uniforms: float64 `[B]`, one per candidate, independent of those that `chosen` was drawn with.

    Returns:
        int64 `[b]`, all different.

    Raises:
        NonFiniteScoresError: fewer than `count` scores are finite.
    """
    keys = np.where(np.isfinite(scores), uniforms, -np.inf)
    _check_count(keys, count)
    keys[chosen] = -np.inf
    return np.concatenate([chosen, _largest(keys, count - len(chosen))])


def _finite(scores: Scores) -> Scores:
    return np.where(np.isfinite(scores), scores, np.float32(-np.inf))


def _log_priorities(scores: Scores, settings: SelectorSettings) -> NDArray[np.float64]:
    """Returns α · log(max(score, 0) + ε), minus infinity where the score is not finite."""
    priorities = np.where(np.isfinite(scores), np.maximum(scores, 0), 0).astype(np.float64) + PRIORITY_OF_NOTHING
    return np.where(np.isfinite(scores), settings.priority_exponent * np.log(priorities), -np.inf)


def _largest(keys: NDArray[np.float64], count: int) -> Indices:
    """Returns the positions of the `count` largest keys, largest first, ties by position.

    Keys of minus infinity are never returned.
    """
    _check_count(keys, count)
    threshold = np.partition(keys, len(keys) - count)[len(keys) - count]
    above = np.flatnonzero(keys > threshold)
    tied = np.flatnonzero(keys == threshold)[: count - len(above)]
    chosen = np.concatenate([above, tied])
    return chosen[np.argsort(-keys[chosen], kind="stable")].astype(np.int64)


def _check_count(keys: NDArray[np.float64], count: int) -> None:
    eligible = int(np.count_nonzero(keys > -np.inf))
    if eligible < count:
        raise NonFiniteScoresError(
            f"{eligible} of {len(keys)} candidates have a finite score, {count} were to be selected; "
            "look for overflow in the learner copy or the reference, or lower sub_batch_size"
        )
