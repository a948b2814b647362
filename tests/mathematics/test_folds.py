"""The two halves of a data set: the same for trainer and service, for ever."""

from __future__ import annotations

import hashlib

import numpy as np

from preceptor.folds import folds_of

GOLDEN = [1, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0]


def test_folds_never_change_between_releases() -> None:
    assert folds_of(range(16)).tolist() == GOLDEN
    assert folds_of(["train/0001.png", "ü", ""]).tolist() == [1, 0, 0]


def test_a_fold_is_the_lowest_bit_of_the_hash_of_the_text() -> None:
    ids: list[int | str] = [-3, 0, 2**62, "a", "ß"]
    naive = [hashlib.blake2b(str(item).encode("utf-8"), digest_size=1).hexdigest() for item in ids]
    assert folds_of(ids).tolist() == [int(digits[1] in "13579bdf") for digits in naive]


def test_numbers_and_their_texts_share_a_fold_whatever_holds_them() -> None:
    numbers = list(range(200))
    for same in (np.array(numbers), np.array(numbers, np.uint8), [str(number) for number in numbers]):
        assert folds_of(same).tolist() == folds_of(numbers).tolist()


def test_halves_are_halves() -> None:
    folds = folds_of(range(20_000))
    assert abs(folds.mean() - 0.5) < 4 * np.sqrt(0.25 / 20_000)
    assert abs(folds.reshape(-1, 2).mean(0) - 0.5).max() < 0.03
