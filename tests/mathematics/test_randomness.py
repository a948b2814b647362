"""The random stream of a selection."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from preceptor_service.randomness import gumbels, uniforms

GOLDEN = [0.3085284648258266, 0.966706504891307, 0.742476001040804]


def test_the_same_key_gives_the_same_numbers_and_a_longer_stream_begins_with_the_shorter() -> None:
    assert uniforms(1, "run", 2, 3, 1000)[:10].tolist() == uniforms(1, "run", 2, 3, 10).tolist()


@pytest.mark.parametrize(
    "other", [(2, "run", 2, 3), (1, "nur", 2, 3), (1, "run", 3, 3), (1, "run", 2, 4), (1, "run", 3, 2)]
)
def test_any_other_key_gives_other_numbers(other: tuple[int, str, int, int]) -> None:
    assert not np.intersect1d(uniforms(1, "run", 2, 3, 4096), uniforms(*other, 4096)).size


def test_memory_banks_have_a_stream_of_their_own() -> None:
    assert not np.intersect1d(uniforms(1, "run", 2, 3, 4096), uniforms(1, "run", 2, 3, 4096, domain=1)).size
    naive = np.random.Philox(
        key=1 + (int.from_bytes(hashlib.blake2b(b"run", digest_size=8).digest(), "little") << 64),
        counter=(1 << 64) + (3 << 128) + (2 << 192),
    )
    assert uniforms(1, "run", 2, 3, 3, domain=1).tolist() == [
        ((int(naive.random_raw()) >> 11) + 0.5) / 2**53 for _ in range(3)
    ]


def test_every_bit_of_the_run_id_and_the_seed_counts() -> None:
    # Found by the naive loop: keys above 2^63 were rounded to floats, so that runs could share a stream.
    run_ids = ["run", "equal-easy-reference-uniform"]
    words = [int.from_bytes(hashlib.blake2b(run_id.encode(), digest_size=8).digest(), "little") for run_id in run_ids]
    assert max(words) >= 2**63
    for run_id, word in zip(run_ids, words, strict=True):
        stream = np.random.Philox(key=(2**63 - 1) + (word << 64), counter=(5 << 128) + ((2**62 + 1) << 192))
        naive = [((int(stream.random_raw()) >> 11) + 0.5) / 2**53 for _ in range(5)]
        assert uniforms(2**63 - 1, run_id, 2**62 + 1, 5, 5).tolist() == naive


def test_numbers_lie_strictly_between_0_and_1_and_are_spread_evenly() -> None:
    numbers = uniforms(0, "spread", 0, 0, 100_000)
    assert 0 < numbers.min() < numbers.max() < 1
    shares = np.histogram(numbers, 10, (0, 1))[0] / len(numbers)
    np.testing.assert_allclose(shares, 0.1, atol=0.005)


def test_the_stream_never_changes_between_releases() -> None:
    assert uniforms(42, "golden", 7, 1, 3).tolist() == GOLDEN


def test_gumbel_noise_has_the_mean_and_variance_of_its_distribution() -> None:
    noise = gumbels(uniforms(9, "gumbel", 0, 0, 200_000))
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.012)
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.04)
