"""Scores, noise, schedule and draws with Python numbers and loops."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from preceptor import RunSpec


def select(
    run: RunSpec,
    *,
    learner_losses: Sequence[float],
    reference_losses: Sequence[float],
    count: int,
    step: int,
    rank: int = 0,
    gradient_norms: Sequence[float] = (),
) -> list[int]:
    """Draws one candidate after the other: first those by score, then uniformly from what is left."""
    scores = list(gradient_norms) or _scores(run, learner_losses, reference_losses)
    return draw(run, scores, count, step, rank)


def draw(run: RunSpec, scores: Sequence[float], count: int, step: int, rank: int = 0, domain: int = 0) -> list[int]:
    """The same from scores; `domain` 1 is that of memory banks."""
    rows = len(scores)
    noise = _uniforms((run.seed, run.run_id, step, rank), 2 * rows, domain)
    by_score = scheduled(run, step, count)
    if not by_score:
        return _drawn(list(noise[:rows]), count, [])
    keys = [_key(run, value, uniform) for value, uniform in zip(scores, noise[:rows], strict=True)]
    drawn = _drawn(keys, by_score, [])
    spare = [
        uniform if math.isfinite(value) else -math.inf for value, uniform in zip(scores, noise[rows:], strict=True)
    ]
    return _drawn(spare, count - by_score, drawn)


def importance_weights(
    run: RunSpec,
    indices: Sequence[int],
    *,
    learner_losses: Sequence[float],
    reference_losses: Sequence[float],
    step: int,
) -> list[float]:
    """(1 / (B · P))^β of selector proportional over the largest; P mixes priorities and equal chances as drawn."""
    share = scheduled(run, step, len(indices)) / len(indices)
    scores = _scores(run, learner_losses, reference_losses)
    finite = [score for score in scores if math.isfinite(score)]
    powers = sum((max(score, 0.0) + 1e-6) ** run.priority_exponent for score in finite)
    weights = []
    for position in indices:
        chance = (1 - share) / len(finite)
        if share:
            chance += share * (max(scores[position], 0.0) + 1e-6) ** run.priority_exponent / powers
        weights.append((1 / (len(scores) * chance)) ** run.importance_exponent)
    return [weight / max(weights) for weight in weights]


def scheduled(run: RunSpec, step: int, count: int) -> int:
    """How many of `count` are drawn by score, worked out in fractions."""
    end = math.inf if run.select_until_step is None else run.select_until_step
    if not run.select_from_step <= step < end or held_back(run, step):
        return 0
    share = 1 - Fraction(run.uniform_share)
    if run.warm_up_steps:
        share *= min(Fraction(step - run.select_from_step, run.warm_up_steps), Fraction(1))
    return int(share * count + Fraction(1, 2))


def held_back(run: RunSpec, step: int) -> bool:
    """Whether the block of `step` was drawn for the control arm."""
    if not run.control_fraction:
        return False
    return _uniforms((run.seed, run.run_id, step // run.control_block_steps, 2**64 - 1), 1)[0] < run.control_fraction


def _drawn(keys: list[float], count: int, before: list[int]) -> list[int]:
    drawn = list(before)
    for _ in range(count):
        best, best_key = -1, -math.inf
        for position, key in enumerate(keys):
            if position not in drawn and key > best_key:
                best, best_key = position, key
        drawn.append(best)
    return drawn


def _scores(run: RunSpec, learner_losses: Sequence[float], reference_losses: Sequence[float]) -> list[float]:
    return [_score(run.score, *losses) for losses in zip(learner_losses, reference_losses, strict=True)]


def _score(rule: str, learner: float, reference: float) -> float:
    if rule == "learnability":
        return float(np.float32(learner) - np.float32(reference))
    return {"uniform": 0.0, "hard_learner": learner, "easy_reference": -reference}[rule]


def _key(run: RunSpec, score: float, uniform: float) -> float:
    if not math.isfinite(score):
        return -math.inf
    if run.selector == "proportional":
        return run.priority_exponent * math.log(max(score, 0.0) + 1e-6) - math.log(-math.log(uniform))
    if run.selector == "softmax":
        return score / run.temperature - math.log(-math.log(uniform))
    return {"top_k": score, "uniform": uniform}[run.selector]


def _uniforms(key: tuple[int, str, int, int], count: int, domain: int = 0) -> list[float]:
    seed, run_id, step, rank = key
    run_word = int.from_bytes(hashlib.blake2b(run_id.encode(), digest_size=8).digest(), "little")
    stream = np.random.Philox(key=seed + (run_word << 64), counter=(domain << 64) + (rank << 128) + (step << 192))
    return [((int(stream.random_raw()) >> 11) + 0.5) / 2**53 for _ in range(count)]
