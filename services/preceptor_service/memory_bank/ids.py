"""Example ids as a bank keeps them: whole numbers, or texts of bounded length. No store here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from preceptor.errors import InvalidSuperBatchError
from preceptor.quoting import quoted

Ids = NDArray[np.int64] | NDArray[np.bytes_]
"""Example ids, `[n]`: int64, or UTF-8 texts in numpy's fixed width, which pads with NUL."""

MAX_ID_BYTES = 128
"""Longest text as UTF-8."""


def as_ids(example_id: Any) -> Ids:
    """Returns the ids of one super-batch, an Arrow array `[B]` of int64 or string without nulls.

    Raises:
        InvalidSuperBatchError: an id comes twice, or a text is empty, longer than `MAX_ID_BYTES` or has a NUL in it.
    """
    ids = np.asarray(example_id) if pa.types.is_integer(example_id.type) else _texts(example_id)
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order[1:]] == ids[order[:-1]])
    if len(again):
        first, second = order[again[0]], order[again[0] + 1]
        raise InvalidSuperBatchError(
            f"example_id {quoted(example_id[first].as_py())} is in rows {first} and {second}; a bank keeps one "
            "score of each example, offer each once in a super-batch"
        )
    return ids


def are_texts(ids: Ids) -> bool:
    """Tells which kind they are."""
    return ids.dtype.kind == "S"


def as_texts(ids: Ids) -> list[str]:
    """Returns ids that are texts as the trainer gave them."""
    return [text.decode() for text in ids.tolist()]


def to_arrow(ids: Ids) -> Any:
    """Returns the ids as an Arrow array of int64 or binary."""
    return pa.array(ids.tolist(), pa.binary()) if are_texts(ids) else pa.array(ids)


def from_arrow(column: Any) -> Ids:
    """Returns the ids that `to_arrow` gave."""
    return np.array(column) if pa.types.is_integer(column.type) else np.array(column.to_pylist(), np.bytes_)


def _texts(example_id: Any) -> NDArray[np.bytes_]:
    lengths = np.asarray(pc.binary_length(example_id))
    wrong = np.flatnonzero((lengths < 1) | (lengths > MAX_ID_BYTES))
    if len(wrong):
        raise InvalidSuperBatchError(
            f"example_id in row {wrong[0]} has {lengths[wrong[0]]} bytes as UTF-8; a bank keeps texts of 1 to "
            f"{MAX_ID_BYTES}, shorten it or use whole numbers"
        )
    texts = example_id.cast(pa.binary()).to_pylist()
    with_nul = next((row for row, text in enumerate(texts) if b"\0" in text), None)
    if with_nul is not None:
        raise InvalidSuperBatchError(f"example_id in row {with_nul} has a NUL character in it; leave it out")
    return np.array(texts, np.bytes_)
