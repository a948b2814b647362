"""The random stream of a selection: a pure function of (seed, run, step, rank), the same in gateway and client."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def uniforms(seed: int, run_id: str, step: int, rank: int, count: int, domain: int = 0) -> NDArray[np.float64]:
    """Returns `count` uniform numbers, float64 `[count]`, strictly between 0 and 1.

    Philox4x64 with key (seed, hash of the run id) and counter (0, domain, rank, step): counting up from
    there, no two streams of a run ever overlap. Domain 0 is that of super-batches, 1 that of memory
    banks. Drawn from the raw 64-bit words, which numpy keeps stable across releases (its distributions
    it does not), so a selection can be replayed.
    """
    run_word = int.from_bytes(hashlib.blake2b(run_id.encode(), digest_size=8).digest(), "little")
    # As uint64 arrays: numpy reads a list that holds a number above 2^63 as floats, and rounds it.
    key, counter = np.array([seed, run_word], np.uint64), np.array([0, domain, rank, step], np.uint64)
    bits = np.random.Philox(key=key, counter=counter).random_raw(count)
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
