"""Pools made of Fashion-MNIST, one builder for each thing that is wrong with a pool."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.learning.data.parts import IS_NOISE, Examples, Parts
from preceptor_service.reference.demo_data import NUM_CLASSES, Images, fashion_mnist

_CLEAN = 5_000
_VALIDATION = 5_000


def noisy_labels(seed: int, share: float, limit: int | None = None) -> Parts:
    """Returns a pool of 50,000 garments of which `share` have one of the nine wrong labels.

    Args:
        seed: of the pieces and of the wrong labels.
        share: from 0 to 1.
        limit: examples of each piece; None: all.

    Raises:
        DataMissingError: Fashion-MNIST is not on this machine.
    """
    rng, pool, clean, validation = pieces(seed)
    is_wrong = rng.permutation(len(pool)) < round(share * len(pool))
    label = np.where(is_wrong, (pool.label + rng.integers(1, NUM_CLASSES, len(pool))) % NUM_CLASSES, pool.label)
    return _parts(Images(pool.image, label, pool.example_id), is_wrong, clean, validation, limit)


def imbalanced(seed: int, rare_classes: int, keep: float, limit: int | None = None) -> Parts:
    """Returns a pool in which the first `rare_classes` classes have only `keep` of their garments; labels are right.

    Clean, validation and test part stay balanced. `is_noise` marks the frequent classes' surplus: nothing.
    Arguments and errors as `noisy_labels`.
    """
    rng, pool, clean, validation = pieces(seed)
    stays = (pool.label >= rare_classes) | (rng.random(len(pool)) < keep)
    rare_pool = pool.take(np.flatnonzero(stays))
    return _parts(rare_pool, np.zeros(len(rare_pool), np.bool_), clean, validation, limit)


def irrelevant(seed: int, share: float, limit: int | None = None) -> Parts:
    """Returns a pool of which `share` are no garments: pixels of a garment in random order, with a random label.

    Arguments and errors as `noisy_labels`.
    """
    rng, pool, clean, validation = pieces(seed)
    is_foreign = rng.permutation(len(pool)) < round(share * len(pool))
    image, label = pool.image.copy(), pool.label.copy()
    foreign = np.flatnonzero(is_foreign)
    flat = image[foreign].reshape(len(foreign), -1)
    image[foreign] = rng.permuted(flat, axis=1).reshape(image[foreign].shape)
    label[foreign] = rng.integers(0, NUM_CLASSES, len(foreign))
    return _parts(Images(image, label, pool.example_id), is_foreign, clean, validation, limit)


@lru_cache(maxsize=2)
def _source(part: str, first_id: int) -> Images:
    return fashion_mnist(part, first_id)


def test_images() -> Images:
    """Returns the 10,000 garments to test on; errors as `noisy_labels`."""
    return _source("t10k", len(_source("train", 0)))


def pieces(seed: int) -> tuple[np.random.Generator, Images, Images, Images]:
    """Returns a random stream, and of the training images 50,000 for the pool, the clean and the validation piece."""
    rng = np.random.default_rng(seed)
    images = _source("train", 0)
    order = rng.permutation(len(images))
    clean, validation, pool = np.split(order, [_CLEAN, _CLEAN + _VALIDATION])
    return rng, images.take(pool), images.take(clean), images.take(validation)


def _parts(pool: Images, is_noise: NDArray[np.bool_], clean: Images, validation: Images, limit: int | None) -> Parts:
    first = slice(limit)
    return Parts(
        pool={**_examples(pool, first), IS_NOISE: torch.from_numpy(is_noise[first])},
        clean=_examples(clean, first),
        validation=_examples(validation, first),
        test=lambda: _examples(test_images(), first),
    )


def _examples(images: Images, rows: slice) -> Examples:
    kept = images.take(np.arange(len(images))[rows])
    columns = (("image", kept.image), ("label", kept.label), ("example_id", kept.example_id))
    return {name: torch.from_numpy(column) for name, column in columns}
