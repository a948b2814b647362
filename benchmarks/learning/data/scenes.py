"""Scenes of two garments side by side with captions, and a pool in which some captions are another scene's."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.learning.data.images import pieces, test_images
from benchmarks.learning.data.parts import IS_NOISE, Examples, Parts
from preceptor_service.reference.demo_data import NUM_CLASSES, Images

CONTEXT = 6
PAIR = "pair"
"""Column, int64: which two garments, 10 × the left one's class + the right one's. Never sent to the service."""

PAIRS = NUM_CLASSES**2

_GARMENTS = ("top", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
_TEMPLATES = ("a {} left of a {}", "{} next to {}", "left {} right {}")
_PADDING = ""
_WORDS = (_PADDING, *_GARMENTS, *sorted({word for text in _TEMPLATES for word in text.split() if word != "{}"}))
VOCABULARY = len(_WORDS)


def mismatched_captions(seed: int, share: float, limit: int | None = None) -> Parts:
    """Returns a pool of 50,000 scenes of which `share` have the caption of another one of them.

    Args:
        seed: of the pieces, of which garments meet, and of the captions.
        share: from 0 to 1.
        limit: examples of each piece; None: all.

    Raises:
        DataMissingError: Fashion-MNIST is not on this machine.
    """
    rng, pool, clean, validation = pieces(seed)
    scenes = _scenes(pool, rng, limit)
    is_noise = rng.permutation(len(scenes[PAIR])) < round(share * len(scenes[PAIR]))
    mismatched = np.flatnonzero(is_noise)
    for column in ("input_ids", "attention_mask"):
        scenes[column][mismatched] = scenes[column][np.roll(mismatched, 1)]
    return Parts(
        pool={**scenes, IS_NOISE: torch.from_numpy(is_noise)},
        clean=_scenes(clean, rng, limit),
        validation=_scenes(validation, rng, limit),
        test=lambda: _scenes(test_images(), np.random.default_rng(seed), limit),
    )


def captions(pairs: NDArray[np.int64], template: NDArray[np.int64]) -> Examples:
    """Returns `input_ids` and `attention_mask`, `[N, 6]`, of what says which two garments stand side by side.

    Args:
        pairs: `[N]`.
        template: `[N]`, the wording of each, from 0 to 2.
    """
    left, right = np.divmod(pairs, NUM_CLASSES)
    texts = (
        _TEMPLATES[wording].format(_GARMENTS[first], _GARMENTS[second])
        for wording, first, second in zip(template, left, right, strict=True)
    )
    ids = np.zeros((len(pairs), CONTEXT), np.int64)
    for row, text in enumerate(texts):
        words = text.split()
        ids[row, : len(words)] = [_WORDS.index(word) for word in words]
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy((ids > 0).astype(np.int64))}


def _scenes(images: Images, rng: np.random.Generator, limit: int | None) -> Examples:
    """Returns each garment, half as wide, with another one on its right."""
    right = rng.permutation(len(images))
    template = rng.integers(0, len(_TEMPLATES), len(images))
    rows = slice(limit)
    narrow = images.image.reshape(*images.image.shape[:-1], -1, 2).mean(-1).astype(np.uint8)
    pair = (images.label * NUM_CLASSES + images.label[right]).astype(np.int64)[rows]
    return {
        "image": torch.from_numpy(np.concatenate([narrow, narrow[right]], axis=-1)[rows]),
        **captions(pair, template[rows]),
        PAIR: torch.from_numpy(pair),
        "example_id": torch.from_numpy(images.example_id[rows]),
    }
