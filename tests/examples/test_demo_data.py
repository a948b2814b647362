"""The demo's parts are what the demo says they are."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from preceptor_service.reference import demo_data as data


@pytest.fixture(scope="module")
def parts() -> data.Parts:
    return data.load("digits", seed=3)


def test_no_digit_is_in_two_parts_and_none_is_lost(parts: data.Parts) -> None:
    seen = Counter(int(item) for part in (parts.pool, parts.clean, parts.test) for item in part.example_id)

    assert seen == dict.fromkeys(range(1797), 1)


def test_exactly_half_of_the_pools_labels_are_wrong_and_marked(parts: data.Parts) -> None:
    truth = load_digits().target
    wrong = [int(label) != truth[i] for label, i in zip(parts.pool.label, parts.pool.example_id, strict=True)]

    assert sum(wrong) == len(parts.pool) // 2
    assert wrong == parts.is_corrupt.tolist()


def test_the_clean_and_the_test_part_have_their_true_labels(parts: data.Parts) -> None:
    truth = load_digits().target

    for part in (parts.clean, parts.test):
        assert part.label.tolist() == [truth[i] for i in part.example_id]


def test_every_wrong_label_is_reached(parts: data.Parts) -> None:
    truth = load_digits().target[parts.pool.example_id[parts.is_corrupt]]
    shifts = Counter(((parts.pool.label[parts.is_corrupt] - truth) % 10).tolist())

    assert sorted(shifts) == list(range(1, 10))


def test_pixels_fill_the_range_of_bytes(parts: data.Parts) -> None:
    source = load_digits().images[parts.test.example_id[0]]

    assert parts.test.image.shape[1:] == (1, 8, 8)
    assert parts.test.image[0, 0].tolist() == [[round(value * 255 / 16) for value in row] for row in source.tolist()]


def test_the_seed_decides_everything() -> None:
    first, again, other = data.load("digits", 1), data.load("digits", 1), data.load("digits", 2)

    assert first.pool.label.tolist() == again.pool.label.tolist()
    assert first.pool.example_id.tolist() == again.pool.example_id.tolist()
    assert first.pool.example_id.tolist() != other.pool.example_id.tolist()


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'cats'; choose one of .*digits.*fashion-mnist"):
        data.load("cats", 0)


def test_fashion_mnist_is_read_whole(fashion_mnist: Path) -> None:
    parts = data.load("fashion-mnist", 0)

    assert fashion_mnist == data.FASHION_MNIST
    assert (len(parts.pool), len(parts.clean), len(parts.test)) == (55_000, 5_000, 2_000)
    assert parts.pool.image.shape == (55_000, 1, 28, 28)
    ids = np.concatenate([parts.pool.example_id, parts.clean.example_id, parts.test.example_id])
    assert len(set(ids.tolist())) == len(ids)
    assert parts.is_corrupt.sum() == 27_500


def test_a_missing_data_set_says_which_package_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(data, "FASHION_MNIST", tmp_path / "nothing-here")

    with pytest.raises(data.DataMissingError, match="apt-get install dataset-fashion-mnist"):
        data.load("fashion-mnist", 0)


def test_an_idx_file_is_read_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "two-by-three.gz"
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6])))

    assert data.read_idx(path).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0",
        b"\0\0\x08\x01\0\0\0\x05ab",
        b"\0\0\x08\x03\0\0",
        b"\0\0\x08\x02\0\0\0\x01\0",
    ],
    ids=["empty", "floats", "short", "no sizes", "half a size"],
)
def test_what_is_no_idx_file_of_bytes_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.gz"
    path.write_bytes(gzip.compress(content))

    with pytest.raises(ValueError, match=r"odd\.gz|buffer|element size"):
        data.read_idx(path)
