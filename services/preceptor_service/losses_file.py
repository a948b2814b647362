"""A table of reference losses as a file: what it says of itself, and that it is whole. No torch, no Ray.

Written by `preceptor build-reference-losses`, read by gateways, which trust nothing of it unchecked.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from preceptor.batches import EXAMPLE_ID
from preceptor.quoting import quoted

METADATA = b"preceptor.reference_losses"
"""Key of the schema's metadata under which a table says, as JSON, what it was made from."""

REFERENCE_LOSS, CONTENT = "reference_loss", "content_digest"
"""Its columns after `example_id`: float32, and uint64 as `SuperBatch.contents`, which older tables lack."""


class LossesFile(NamedTuple):
    """A table that was read and checked.

    Attributes:
        metadata: what it says of itself.
        ids: Arrow array or chunked array `[N]` of int64 or string, strictly rising, without nulls.
        losses: float32 `[N]`; NaN for an example without a loss.
        contents: uint64 `[N]`, or None where it keeps none.
    """

    metadata: dict[str, Any]
    ids: Any
    losses: NDArray[np.float32]
    contents: NDArray[np.uint64] | None


def metadata_of(path: Path) -> dict[str, Any]:
    """Returns what a table says that it was made from; its `digest` is that of what its losses depend on.

    Raises:
        ValueError: it is no table of ours.
    """
    try:
        with pq.ParquetFile(path) as file:
            found = json.loads((file.schema_arrow.metadata or {})[METADATA])
        _ = found["digest"], found["identity"]["weights"]
        if found["rows"] < 1:
            raise ValueError("it has 0 rows")
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no table of reference losses: {error!r:.200}") from error
    return dict(found)


def read_losses(path: Path) -> LossesFile:
    """Returns a table, once it is known to be what was written. Holds all of it.

    Raises:
        ValueError: it is no table of ours, or somebody changed it, in one line.
    """
    metadata = metadata_of(path)
    try:
        with pq.ParquetFile(path) as file:
            names = _names(path, file.schema_arrow)
            if file.metadata.num_rows != metadata["rows"]:
                raise _changed(path, f"it has {file.metadata.num_rows:,} rows, and {metadata['rows']:,} were written")
            table = file.read(columns=names)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read: {(str(error).splitlines() or ['no reason'])[0][:200]}") from error
    for name in names:
        if table[name].null_count:
            raise _changed(path, f"column {name!r} has {table[name].null_count:,} nulls")
    _check_rising(path, table[EXAMPLE_ID])
    losses = table[REFERENCE_LOSS].to_numpy()
    _check_losses(path, losses, metadata)
    if "columns_digest" in metadata and digest_of_columns(table) != metadata["columns_digest"]:
        raise _changed(path, "its columns have another digest than the one that was written")
    contents = table[CONTENT].to_numpy() if CONTENT in names else None
    return LossesFile(metadata, table[EXAMPLE_ID], losses, contents)


def digest_of_columns(table: Any) -> str:
    """Returns `"sha256:..."` of the names, types and values of an Arrow table of numbers and texts without nulls.

    Values as their bytes, little-endian; of texts first the length of each, int32, then all of them as UTF-8. However
    the table is cut into chunks or row groups, and however it is compressed.
    """
    sha256 = hashlib.sha256()
    for name, column in zip(table.column_names, table.columns, strict=True):
        sha256.update(json.dumps([name, str(column.type), len(column)]).encode())
        if not pa.types.is_string(column.type):
            for chunk in column.chunks:
                sha256.update(_little_endian(chunk.to_numpy(zero_copy_only=False)))
            continue
        for chunk in column.chunks:
            sha256.update(_little_endian(np.diff(_offsets(chunk))))
        for chunk in column.chunks:
            offsets, text = _offsets(chunk), chunk.buffers()[2]
            sha256.update(b"" if text is None else memoryview(text)[int(offsets[0]) : int(offsets[-1])])
    return f"sha256:{sha256.hexdigest()}"


def _names(path: Path, schema: Any) -> list[str]:
    """Returns the columns to read, once their types are known to be right."""
    wanted = {EXAMPLE_ID: (pa.int64(), pa.string()), REFERENCE_LOSS: (pa.float32(),), CONTENT: (pa.uint64(),)}
    found = []
    for name, types in wanted.items():
        count = schema.names.count(name)
        if count == 0 and name == CONTENT:
            continue
        if count != 1:
            raise _changed(path, f"it has {count} columns {name!r}")
        kind = schema.field(name).type
        if kind not in types:
            raise _changed(path, f"column {name!r} is {str(kind)[:64]}, not {' or '.join(map(str, types))}")
        found.append(name)
    return found


def _check_rising(path: Path, ids: Any) -> None:
    before, after = ids.slice(0, len(ids) - 1), ids.slice(1)
    row = pc.index(pc.less_equal(after, before), pa.scalar(True)).as_py()
    if row >= 0:
        follows = f"{quoted(after[row].as_py())} in row {row + 1} follows {quoted(before[row].as_py())}"
        raise _changed(path, f"ids must rise and be different, and {follows}")


def _check_losses(path: Path, losses: NDArray[np.float32], metadata: dict[str, Any]) -> None:
    infinite = np.flatnonzero(np.isinf(losses))
    if len(infinite):
        raise _changed(path, f"column {REFERENCE_LOSS!r} has {losses[infinite[0]]} in row {infinite[0]}")
    without = int(np.isnan(losses).sum())
    if without != metadata.get("rows_without_loss", without):
        raise _changed(path, f"{without:,} rows have no loss, and {metadata['rows_without_loss']:,} were written so")


def _offsets(array: Any) -> NDArray[np.int32]:
    if not len(array):
        return np.zeros(1, np.int32)
    return np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]


def _little_endian(values: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).view(np.uint8).data


def _changed(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} is not as build-reference-losses wrote it: {what}; build it again")
