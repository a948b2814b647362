"""`folds_of`: which half of the data an example belongs to, for runs with two references (`RunSpec.cross_reference`).

A trainer splits its data with it, and the service finds the reference that did not see a candidate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def folds_of(example_id: Iterable[int | str]) -> NDArray[np.int64]:
    """Returns the fold of each example, 0 or 1: int64 `[N]`.

    The lowest bit of the BLAKE2b hash, one byte long, of the id as UTF-8 text; a whole number is taken in decimal, so
    that 7 and "7" share a fold. Stable: it never changes between releases, machines or orders.

    Args:
        example_id: `[N]` whole numbers or texts, as given to `Run.select`; an array, a tensor's `tolist()`, a list.
    """
    texts = (str(item).encode() for item in example_id)
    return np.array([hashlib.blake2b(text, digest_size=1).digest()[0] & 1 for text in texts], np.int64)
