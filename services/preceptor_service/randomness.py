"""The random stream of a selection, which the client has too, and the noise that is made of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from preceptor.randomness import uniforms

__all__ = ["gumbels", "uniforms"]


def gumbels(uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns standard Gumbel noise, float64, from numbers strictly between 0 and 1."""
    return -np.log(-np.log(uniform))
