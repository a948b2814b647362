"""Columns of a super-batch: what a model reads and what the gateway checks. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from preceptor.errors import InvalidSuperBatchError

ElementType = Literal["uint8", "float", "int64"]

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
"""Names of the token columns, those of the tokenizers of transformers."""

_ARROW_TYPES: dict[ElementType, Any] = {"uint8": pa.uint8(), "float": pa.float32(), "int64": pa.int64()}
_NUMPY_TYPES: dict[ElementType, DTypeLike] = {"uint8": np.uint8, "float": np.float32, "int64": np.int64}


@dataclass(frozen=True)
class ColumnSpec:
    """One column that every super-batch of a run has.

    Attributes:
        name: e.g. `"image"`; also the name of the argument of the model's `forward`.
        element_type: Arrow's name of the element type.
        shape: of one example; empty for a scalar.
        below: whole numbers lie in [0, below); None: no bound.
    """

    name: str
    element_type: ElementType
    shape: tuple[int, ...] = ()
    below: int | None = None

    def arrow_type(self) -> Any:  # pyarrow ships no types
        """Returns the Arrow type: one fixed-size list per dimension, the outermost dimension outermost."""
        arrow_type = _ARROW_TYPES[self.element_type]
        for size in reversed(self.shape):
            arrow_type = pa.list_(arrow_type, size)
        return arrow_type

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's type of one element."""
        return np.dtype(_NUMPY_TYPES[self.element_type])

    @property
    def row_bytes(self) -> int:
        """Bytes of one example."""
        return math.prod(self.shape) * self.dtype.itemsize

    def check_values(self, values: NDArray[Any], first_row: int = 0) -> None:
        """Checks the values of one super-batch, `[B, *shape]`.

        Raises:
            InvalidSuperBatchError: naming the first row that is not finite or out of range, counted from `first_row`.
        """
        if self.element_type == "float":
            wrong, rule = ~np.isfinite(values), "finite"
        elif self.below is not None:
            wrong, rule = (values < 0) | (values >= self.below), f"from 0 to {self.below - 1}"
        else:
            return
        if wrong.any():
            first = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
            raise InvalidSuperBatchError(
                f"column {self.name!r} has {values[first]} in row {first_row + first[0]}; every value must be {rule}"
            )


def token_columns(context_length: int, vocab_size: int) -> tuple[ColumnSpec, ColumnSpec]:
    """Returns the two columns of a padded text, as the tokenizers of transformers give them.

    Args:
        context_length: tokens of one text with its padding, L.
        vocab_size: token ids lie in [0, vocab_size).

    Returns:
        `input_ids`, int64 `[L]`, and `attention_mask`, int64 `[L]`: 1 for a token, 0 for padding.
    """
    return (
        ColumnSpec(INPUT_IDS, "int64", (context_length,), below=vocab_size),
        ColumnSpec(ATTENTION_MASK, "int64", (context_length,), below=2),
    )
