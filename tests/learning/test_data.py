"""The pool has what is wrong with it, and nothing of it is in the other pieces."""

from __future__ import annotations

import pytest
import torch

from benchmarks.learning.data import Parts, build
from benchmarks.learning.data.parts import IS_NOISE, rows_of
from benchmarks.learning.settings import Data

pytestmark = pytest.mark.usefixtures("fashion_mnist")

NOISY = Data("noisy_labels", {"share": 0.5})


@pytest.fixture(scope="module")
def parts(fashion_mnist: None) -> Parts:
    return build(NOISY, seed=3)


def test_pieces_are_disjoint_and_ids_are_unique(parts: Parts) -> None:
    pieces = [parts.pool, parts.clean, parts.validation, parts.test()]
    ids = [set(piece["example_id"].tolist()) for piece in pieces]

    assert [len(of_piece) for of_piece in ids] == [rows_of(piece) for piece in pieces]
    assert len(set().union(*ids)) == sum(map(len, ids))
    assert list(map(len, ids[1:])) == [5_000, 5_000, 10_000]


def test_the_same_seed_gives_the_same_pool_and_another_seed_another(parts: Parts) -> None:
    again, other = build(NOISY, seed=3).pool, build(NOISY, seed=4).pool

    assert all(torch.equal(parts.pool[column], again[column]) for column in parts.pool)
    assert not torch.equal(parts.pool["example_id"], other["example_id"])


def test_half_of_the_noisy_pool_has_a_wrong_label_and_the_rest_the_right_one(parts: Parts) -> None:
    noisy, clean = parts.pool, build(Data("noisy_labels", {"share": 0.0}), seed=3).pool

    assert torch.equal(noisy["example_id"], clean["example_id"])
    assert torch.equal(noisy["label"] != clean["label"], noisy[IS_NOISE])
    assert float(noisy[IS_NOISE].float().mean()) == 0.5
    assert not clean[IS_NOISE].any()


def test_a_limit_keeps_the_first_of_each_piece() -> None:
    whole, limited = (build(Data("noisy_labels", {"share": 0.5, "limit": limit}), seed=3) for limit in (None, 100))

    assert rows_of(limited.pool) == rows_of(limited.test()) == 100
    assert torch.equal(whole.pool["image"][:100], limited.pool["image"])
