"""The pools have what is wrong with them, and nothing of a pool is in the other pieces."""

from __future__ import annotations

import pytest
import torch

from benchmarks.learning.data import Parts, build
from benchmarks.learning.data.parts import IS_NOISE, rows_of
from benchmarks.learning.data.scenes import PAIR
from benchmarks.learning.settings import Data

pytestmark = pytest.mark.usefixtures("fashion_mnist")

BUILT = {
    "noisy_labels": Data("noisy_labels", {"share": 0.5}),
    "imbalanced": Data("imbalanced", {"rare_classes": 5, "keep": 0.1}),
    "irrelevant": Data("irrelevant", {"share": 0.5}),
    "mismatched_captions": Data("mismatched_captions", {"share": 0.5}),
}


@pytest.fixture(scope="module", params=BUILT)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def parts(name: str, fashion_mnist: None) -> Parts:
    return build(BUILT[name], seed=3)


def test_pieces_are_disjoint_and_ids_are_unique(parts: Parts) -> None:
    pieces = [parts.pool, parts.clean, parts.validation, parts.test()]
    ids = [set(piece["example_id"].tolist()) for piece in pieces]

    assert [len(of_piece) for of_piece in ids] == [rows_of(piece) for piece in pieces]
    assert len(set().union(*ids)) == sum(map(len, ids))
    assert list(map(len, ids[1:])) == [5_000, 5_000, 10_000]


def test_the_same_seed_gives_the_same_pool_and_another_seed_another(name: str, parts: Parts) -> None:
    again, other = build(BUILT[name], seed=3).pool, build(BUILT[name], seed=4).pool

    assert all(torch.equal(parts.pool[column], again[column]) for column in parts.pool)
    assert not torch.equal(parts.pool["example_id"], other["example_id"])


def test_half_of_the_noisy_pool_has_a_wrong_label_and_the_rest_the_right_one(fashion_mnist: None) -> None:
    noisy, clean = (build(Data("noisy_labels", {"share": share}), seed=3).pool for share in (0.5, 0.0))

    assert torch.equal(noisy["example_id"], clean["example_id"])
    assert torch.equal(noisy["label"] != clean["label"], noisy[IS_NOISE])
    assert float(noisy[IS_NOISE].float().mean()) == 0.5
    assert not clean[IS_NOISE].any()


def test_rare_classes_are_a_tenth_as_frequent(fashion_mnist: None) -> None:
    counts = torch.bincount(build(BUILT["imbalanced"], seed=3).pool["label"])

    assert float(counts[:5].sum() / counts[5:].sum()) == pytest.approx(0.1, abs=0.01)


def test_half_of_the_irrelevant_pool_are_garments_with_their_labels(fashion_mnist: None) -> None:
    mixed, clean = build(BUILT["irrelevant"], seed=3).pool, build(Data("noisy_labels", {"share": 0.0}), seed=3).pool
    is_garment = ~mixed[IS_NOISE]

    assert float(is_garment.float().mean()) == 0.5
    assert torch.equal(mixed["image"][is_garment], clean["image"][is_garment])
    assert torch.equal(mixed["label"][is_garment], clean["label"][is_garment])
    # The same pixels, elsewhere.
    sums = [pool["image"][mixed[IS_NOISE]].sum((1, 2, 3), dtype=torch.int64) for pool in (mixed, clean)]
    assert torch.equal(*sums)
    assert (mixed["image"] != clean["image"])[mixed[IS_NOISE]].any((1, 2, 3)).all()


def test_a_limit_keeps_the_first_of_each_piece() -> None:
    whole, limited = (build(Data("noisy_labels", {"share": 0.5, "limit": limit}), seed=3) for limit in (None, 100))

    assert rows_of(limited.pool) == rows_of(limited.test()) == 100
    assert torch.equal(whole.pool["image"][:100], limited.pool["image"])


def test_half_of_the_captions_are_another_scenes_and_the_others_name_the_two_garments(fashion_mnist: None) -> None:
    mismatched, right = (build(Data("mismatched_captions", {"share": share}), seed=3).pool for share in (0.5, 0.0))
    is_noise = mismatched[IS_NOISE]
    named = _garments_of(mismatched["input_ids"])

    assert torch.equal(mismatched["image"], right["image"])
    assert float(is_noise.float().mean()) == 0.5
    assert torch.equal(_garments_of(right["input_ids"]), right[PAIR])
    assert torch.equal(named[~is_noise], mismatched[PAIR][~is_noise])
    # One caption in a hundred of another scene names the same two garments.
    assert float((named[is_noise] == mismatched[PAIR][is_noise]).float().mean()) == pytest.approx(0.01, abs=0.005)
    assert torch.equal(named[is_noise].sort().values, mismatched[PAIR][is_noise].sort().values)


def test_a_scene_shows_its_garments_side_by_side(fashion_mnist: None) -> None:
    scenes = build(Data("mismatched_captions", {"share": 0.0}), seed=3).pool
    garments = build(Data("noisy_labels", {"share": 0.0}), seed=3).pool
    narrow = garments["image"].float().reshape(-1, 1, 28, 14, 2).mean(-1).to(torch.uint8)

    assert torch.equal(scenes["image"][..., :14], narrow)
    assert torch.equal(scenes[PAIR] // 10, garments["label"])
    left = torch.stack([narrow[garments["label"] == label].float().mean(0) for label in range(10)])
    right = torch.stack([scenes["image"][scenes[PAIR] % 10 == label][..., 14:].float().mean(0) for label in range(10)])
    assert float((left - right).abs().max()) < 1


def _garments_of(input_ids: torch.Tensor) -> torch.Tensor:
    """Returns the pair that each caption names: the ids of the ten garments are 1 to 10, and the left one is first."""
    garments = [[token - 1 for token in row if 1 <= token <= 10] for row in input_ids.tolist()]
    return torch.tensor([10 * left + right for left, right in garments])
