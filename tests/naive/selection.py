"""Scores, noise and draws with Python numbers and loops."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np


def select(
    *,
    score: str,
    selector: str,
    learner_losses: Sequence[float],
    reference_losses: Sequence[float],
    count: int,
    temperature: float,
    key: tuple[int, str, int, int],
) -> list[int]:
    """Draws one candidate after the other; `key` is (seed, run id, step, rank)."""
    scores = [
        _score(score, learner, reference) for learner, reference in zip(learner_losses, reference_losses, strict=True)
    ]
    noise = _uniforms(key, len(scores))
    left = {position: value for position, value in enumerate(scores) if math.isfinite(value)}
    drawn: list[int] = []
    for _ in range(count):
        best, best_value = -1, -math.inf
        for position, value in left.items():
            ranked = _ranked(selector, value, noise[position], temperature)
            if ranked > best_value:
                best, best_value = position, ranked
        drawn.append(best)
        del left[best]
    return drawn


def _score(rule: str, learner: float, reference: float) -> float:
    if rule == "learnability":
        return float(np.float32(learner) - np.float32(reference))
    return {"uniform": 0.0, "hard_learner": learner, "easy_reference": -reference}[rule]


def _ranked(selector: str, score: float, uniform: float, temperature: float) -> float:
    if selector == "softmax":
        return score / temperature - math.log(-math.log(uniform))
    return {"top_k": score, "uniform": uniform}[selector]


def _uniforms(key: tuple[int, str, int, int], count: int) -> list[float]:
    seed, run_id, step, rank = key
    run_word = int.from_bytes(hashlib.blake2b(run_id.encode(), digest_size=8).digest(), "little")
    stream = np.random.Philox(key=seed + (run_word << 64), counter=(rank << 128) + (step << 192))
    return [((int(stream.random_raw()) >> 11) + 0.5) / 2**53 for _ in range(count)]
