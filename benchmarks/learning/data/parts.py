"""`Parts`: the pieces of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Examples = dict[str, torch.Tensor]
"""Columns by name, `[N, ...]` each: those of the task and `example_id`."""

IS_NOISE = "is_noise"
"""Column of a pool, bool: whether an example teaches something wrong. Never sent to the service."""


@dataclass(frozen=True)
class Parts:
    """Disjoint pieces of one data set.

    Attributes:
        pool: the candidates, with `is_noise`.
        clean: a small curated piece, for references.
        validation: what settings are chosen by, without noise.
        test: reads what is reported, without noise; a function, so that it is looked at where it is meant to be.
    """

    pool: Examples
    clean: Examples
    validation: Examples
    test: Callable[[], Examples]


def rows_of(examples: Examples) -> int:
    """Returns how many examples there are."""
    return len(next(iter(examples.values())))


def take(examples: Examples, rows: torch.Tensor) -> Examples:
    """Returns those at `rows`, in that order."""
    return {name: column[rows] for name, column in examples.items()}
