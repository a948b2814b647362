"""A generated language, and a pool in which some documents are garbled."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.learning.data.parts import IS_NOISE, Examples, Parts

VOCABULARY = 64
CONTEXT = 24

_TOPICS = 2
_SUCCESSORS = 4
_LANGUAGE_SEED = 20_231
"""The language is one, whatever the seed of the documents."""

_SIZES = {"pool": 40_000, "clean": 4_000, "validation": 1_000, "test": 2_000}


def garbled_documents(seed: int, share: float, limit: int | None = None) -> Parts:
    """Returns a pool of 40,000 documents of 24 words, of which `share` have their words in random order.

    A document has one of two topics, never named: in each topic a word has four possible successors, of falling
    likelihood. So a model learns which words follow which, and to guess the topic from what it has read.

    Args:
        seed: of the documents, and of which are garbled.
        share: from 0 to 1.
        limit: documents of each piece; None: all.
    """
    rng = np.random.default_rng(seed)
    first_ids = np.cumsum([0, *_SIZES.values()])
    pieces = {
        name: _documents(min(size, limit or size), int(first), rng)
        for (name, size), first in zip(_SIZES.items(), first_ids, strict=False)
    }
    pool = pieces["pool"]
    words = pool["input_ids"].numpy()
    is_garbled = rng.permutation(len(words)) < round(share * len(words))
    words[is_garbled] = rng.permuted(words[is_garbled], axis=1)
    return Parts(
        pool={**pool, IS_NOISE: torch.from_numpy(is_garbled)},
        clean=pieces["clean"],
        validation=pieces["validation"],
        test=lambda: pieces["test"],
    )


def language() -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns the possible successors, `[topics, words, 4]`, and the likelihood of each, `[4]`."""
    rng = np.random.default_rng(_LANGUAGE_SEED)
    successors = np.stack(
        [np.stack([rng.permutation(VOCABULARY)[:_SUCCESSORS] for _ in range(VOCABULARY)]) for _ in range(_TOPICS)]
    )
    weights = 1 / np.arange(1, _SUCCESSORS + 1)
    return successors, weights / weights.sum()


def _documents(count: int, first_id: int, rng: np.random.Generator) -> Examples:
    successors, likelihood = language()
    topic = rng.integers(0, _TOPICS, count)
    words = np.empty((count, CONTEXT), np.int64)
    words[:, 0] = rng.integers(0, VOCABULARY, count)
    for place in range(1, CONTEXT):
        choice = rng.choice(_SUCCESSORS, count, p=likelihood)
        words[:, place] = successors[topic, words[:, place - 1], choice]
    return {
        "input_ids": torch.from_numpy(words),
        "attention_mask": torch.ones(count, CONTEXT, dtype=torch.int64),
        "example_id": torch.arange(first_id, first_id + count),
    }
