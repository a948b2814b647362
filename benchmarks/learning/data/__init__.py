"""What is trained and measured on: builders by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.learning.data import corpus, images, scenes
from benchmarks.learning.data.parts import Examples, Parts
from benchmarks.learning.settings import Data

__all__ = ["BUILDERS", "Examples", "Parts", "build"]

BUILDERS: Mapping[str, Callable[..., Parts]] = {
    "noisy_labels": images.noisy_labels,
    "garbled_documents": corpus.garbled_documents,
    "imbalanced": images.imbalanced,
    "irrelevant": images.irrelevant,
    "mismatched_captions": scenes.mismatched_captions,
}
"""Name → `f(seed, **options)`."""


def build(data: Data, seed: int) -> Parts:
    """Returns the data, the same for the same arguments.

    Raises:
        DataMissingError: it is not on this machine.
    """
    return BUILDERS[data.builder](seed, **data.options)
