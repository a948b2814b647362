"""Selectors: from scores to the positions of a sub-batch. Pure functions of numpy arrays.

All draw without replacement, leave out candidates whose score is not finite, and break ties by
position. A new selector is one function and one line in `SELECTORS`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from preceptor.errors import NonFiniteScoresError
from preceptor_service.randomness import gumbels

Scores = NDArray[np.float32]
Uniforms = NDArray[np.float64]
Indices = NDArray[np.int64]
Selector = Callable[[Scores, int, Uniforms, float], Indices]


def softmax(scores: Scores, count: int, uniforms: Uniforms, temperature: float) -> Indices:
    """Draws `count` candidates from softmax(scores / temperature), without replacement.

    The `count` largest of `score / temperature + Gumbel noise` are exactly such a draw, in the
    order drawn, in one pass.

    Args:
        scores: float32 `[B]`.
        count: b, at least 1.
        uniforms: float64 `[B]`, strictly between 0 and 1, one per candidate.
        temperature: above 0; 1 is the paper's.

    Returns:
        int64 `[b]`, positions in the order drawn.

    Raises:
        NonFiniteScoresError: fewer than `count` scores are finite.

    Source: Evans et al., arXiv 2312.05328, Algorithm 1; Gumbel-top-k: Kool et al., ICML 2019.
    """
    return _largest(_finite(scores).astype(np.float64) / temperature + gumbels(uniforms), count)


def top_k(scores: Scores, count: int, uniforms: Uniforms, temperature: float) -> Indices:
    """Returns the `count` candidates with the largest scores, largest first.

    Args:
        scores: float32 `[B]`.
        count: b, at least 1.
        uniforms: not used.
        temperature: not used.

    Returns:
        int64 `[b]`, positions by falling score.

    Raises:
        NonFiniteScoresError: fewer than `count` scores are finite.

    Source: RHO-LOSS, Mindermann et al., ICML 2022, Algorithm 1.
    """
    return _largest(_finite(scores).astype(np.float64), count)


def uniform(scores: Scores, count: int, uniforms: Uniforms, temperature: float) -> Indices:
    """Draws `count` candidates with equal chances, without replacement: the control arm.

    Args:
        scores: float32 `[B]`, only to leave out those that are not finite.
        count: b, at least 1.
        uniforms: float64 `[B]`, one per candidate.
        temperature: not used.

    Returns:
        int64 `[b]`, positions in the order drawn.

    Raises:
        NonFiniteScoresError: fewer than `count` scores are finite.
    """
    return _largest(np.where(np.isfinite(scores), uniforms, -np.inf), count)


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


SELECTORS: dict[str, Selector] = {"softmax": softmax, "top_k": top_k, "uniform": uniform}
"""Every selector by the name that a run gives it."""


def _finite(scores: Scores) -> Scores:
    return np.where(np.isfinite(scores), scores, np.float32(-np.inf))


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
