"""Rounds: candidates measured in turn within one run, so that a drifting machine drifts for all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Once = Callable[[], object]


def timed(once: Once) -> float:
    """Returns how long one call takes, in milliseconds."""
    started = time.perf_counter()
    once()
    return (time.perf_counter() - started) * 1e3


def interleaved(
    candidates: Mapping[str, Callable[[], float]], rounds: int, repeats: int = 1
) -> dict[str, list[list[float]]]:
    """Returns candidate → rounds → `repeats` numbers, the order turning by one candidate each round."""
    names = list(candidates)
    numbers: dict[str, list[list[float]]] = {name: [] for name in names}
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            numbers[name].append([candidates[name]() for _ in range(repeats)])
    return numbers


def median(rounds: list[list[float]]) -> float:
    """Returns the median of all numbers of all rounds."""
    return statistics.median(number for numbers in rounds for number in numbers)


def ratios(above: list[list[float]], below: list[list[float]]) -> list[float]:
    """Returns the ratio of medians of each round."""
    return [statistics.median(one) / statistics.median(other) for one, other in zip(above, below, strict=True)]


def spread(numbers: list[float]) -> str:
    """Returns the smallest and the largest, in words."""
    return f"{min(numbers):.3g} to {max(numbers):.3g}"


def rounded(rounds: list[list[float]], digits: int = 3) -> list[list[float]]:
    """Returns the numbers as they are kept."""
    return [[round(number, digits) for number in numbers] for numbers in rounds]
