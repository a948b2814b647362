"""The draw of one sub-batch: selector, schedule and random stream put together. Pure functions of numpy arrays.

Called by the pipeline, by whoever replays what it drew (`ledger/replay.py`), and by the memory bank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preceptor.runs import RunSpec
from preceptor_service import selectors
from preceptor_service.randomness import uniforms
from preceptor_service.selectors import Indices, Scores, Selector, SelectorSettings

_NOTHING = np.empty(0, np.float32)


@dataclass(frozen=True)
class Draw:
    """What to draw: b candidates, for one step of one rank; `domain` is that of the random stream."""

    step: int
    rank: int
    sub_batch_size: int
    domain: int = 0


def selector_settings(spec: RunSpec) -> SelectorSettings:
    """Returns what a run says about its selector."""
    return SelectorSettings(spec.temperature, spec.priority_exponent, spec.importance_exponent)


def drawn_by_score(
    spec: RunSpec, selector: Selector, scores: Scores, draw: Draw, by_score: int
) -> tuple[Indices, NDArray[np.float32]]:
    """Returns `by_score` candidates that the selector draws, then uniform draws from the rest; and their weights.

    Args:
        spec: seed, name and selector settings of the run.
        selector: the run's.
        scores: float32 `[B]`.
        draw: b, step and rank.
        by_score: from 1 to b; `schedule.count_by_score` says how many.

    Returns:
        int64 `[b]`, positions in the order drawn, and their importance weights, float32 `[b]`; these are empty where
        the selector has none.

    Raises:
        NonFiniteScoresError: fewer than b scores are finite.
    """
    rows, is_mixed = len(scores), by_score < draw.sub_batch_size
    noise = uniforms(spec.seed, spec.run_id, draw.step, draw.rank, rows * (2 if is_mixed else 1), draw.domain)
    settings = selector_settings(spec)
    indices = selector.draw(scores, by_score, noise[:rows], settings)
    if is_mixed:
        indices = selectors.topped_up(indices, scores, draw.sub_batch_size, noise[rows:])
    if selector.log_probabilities is None:
        return indices, _NOTHING
    chances, share = selector.log_probabilities(scores, settings), by_score / draw.sub_batch_size
    return indices, selectors.importance_weights(chances, indices, share, settings.importance_exponent)


def drawn_for_reference(spec: RunSpec, rows: int, draw: Draw, count: int) -> Indices:
    """Returns what an online reference is trained on: int64, `count` of `rows` or all, all with equal chances.

    From a random stream of its own, so that it has nothing to do with what is drawn for the trainer.
    """
    noise = uniforms(spec.seed, f"{spec.run_id}/reference", draw.step, draw.rank, rows)  # no run id has a slash
    return selectors.uniform(np.zeros(rows, np.float32), min(count, rows), noise, selector_settings(spec))


def drawn_uniformly(spec: RunSpec, selector: Selector, rows: int, draw: Draw) -> tuple[Indices, NDArray[np.float32]]:
    """Returns b of `rows` unscored candidates, all with equal chances; and their weights, as `drawn_by_score`."""
    noise = uniforms(spec.seed, spec.run_id, draw.step, draw.rank, rows, draw.domain)
    alike = np.zeros(rows, np.float32)
    indices = selectors.uniform(alike, draw.sub_batch_size, noise, selector_settings(spec))
    return indices, _NOTHING if selector.log_probabilities is None else np.ones(draw.sub_batch_size, np.float32)
