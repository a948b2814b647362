"""Super-batches off the wire: bytes of an Arrow IPC stream to checked numpy columns.

The only place where a trainer's bytes are decoded. Nothing is read before its bounds were checked:
flipped bytes crash Arrow where `validate(full=True)` was left out, and eight kilobytes of a
compressed body can grow to hundreds of megabytes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from preceptor.batches import EXAMPLE_ID
from preceptor.errors import InvalidSuperBatchError
from preceptor.folds import folds_of
from preceptor.quoting import brief, quoted
from preceptor_service.columns import ColumnSpec
from preceptor_service.scoring.pool import MicroBatch

_EXAMPLE_ID_TYPES = (pa.int64(), pa.string())
_CONTENT_BYTES = 8

Body = bytes | bytearray | memoryview | NDArray[np.uint8]


@dataclass(frozen=True)
class SuperBatch:
    """B candidates, checked against the run's columns.

    Attributes:
        columns: name → read-only array `[B, ...]`, views of the body where Arrow allows it.
        rows: B.
        example_id: Arrow array `[B]` of int64 or string, no view of the body; None where the trainer sent none.
    """

    columns: Mapping[str, NDArray[np.generic]]
    rows: int
    example_id: Any = None

    def ids(self, why: str) -> Any:
        """Returns the example ids, Arrow array `[B]` of int64 or string without nulls; `why` they are needed.

        Raises:
            InvalidSuperBatchError: there are none, or some are null.
        """
        if self.example_id is None:
            raise InvalidSuperBatchError(
                f"the super-batch has no example_id, and {why}; give example_id, one per candidate"
            )
        if self.example_id.null_count:
            raise InvalidSuperBatchError(f"column {EXAMPLE_ID!r} has {self.example_id.null_count} nulls; fill them")
        return self.example_id

    def take(self, positions: NDArray[np.int64]) -> SuperBatch:
        """Returns the candidates at `positions`, copied, without their ids."""
        return SuperBatch({name: values[positions] for name, values in self.columns.items()}, len(positions))

    def contents(self) -> NDArray[np.uint64]:
        """Returns a short digest of each candidate's content, uint64 `[B]`, never 0.

        The first 8 bytes, little-endian, of the SHA-256 of the candidate's values: column after column in the run's
        order, each in row-major order and little-endian. 0 is taken for 1. Two contents collide by chance once in 2^64
        pairs; whoever wants to deceive himself can.
        """
        # SHA-256 because processors have instructions for it, which BLAKE2b lacks.
        columns = [_bytes_by_row(values, self.rows) for values in self.columns.values()]
        digests = bytearray()
        for row in range(self.rows):
            sha256 = hashlib.sha256()
            for column in columns:
                sha256.update(column[row].data)
            digests += sha256.digest()[:_CONTENT_BYTES]
        return np.maximum(np.frombuffer(bytes(digests), "<u8").astype(np.uint64), np.uint64(1))

    def folds(self) -> NDArray[np.int64]:
        """Returns the half of the data that each candidate belongs to: int64 `[B]`, 0 or 1; see `preceptor.folds`.

        Raises:
            InvalidSuperBatchError: there are no example ids.
        """
        why = "this run has two references, of which each candidate is scored by the one that did not see it"
        return folds_of(self.ids(why).to_pylist())

    def micro_batches(self, size: int) -> Iterator[MicroBatch]:
        """Yields the candidates in order, `size` rows at a time.

        The last one is padded by less than a sixteenth, at most to `size`, so that forward passes have
        few different shapes and hardly cost more. Candidate i is always row `i % size` of micro-batch
        `i // size`: for the same super-batch a forward pass has the same shape and the same neighbours,
        whoever runs it, and gives the same losses to the last bit.
        """
        for start in range(0, self.rows, size):
            count = min(size, self.rows - start)
            rows = min(size, _rounded_up(count))
            yield MicroBatch(
                columns={name: _padded(column[start : start + count], rows) for name, column in self.columns.items()},
                row_count=count,
            )


def decode(body: Body, columns: tuple[ColumnSpec, ...], row_count: int) -> SuperBatch:
    """Returns the super-batch that `body` holds.

    Args:
        body: Arrow IPC stream of one schema and one record batch, uncompressed. It must not change
            while the super-batch lives.
        columns: what the run expects, in order; a last column `example_id` may follow.
        row_count: B, as announced.

    Raises:
        InvalidSuperBatchError: it is not such a stream, or a column is missing, extra, of another
            type or shape, empty in places, out of range or not finite; or two candidates with one id differ.
    """
    schema, message = _read_messages(body)
    _check_schema(schema, columns)
    try:
        batch = pa.ipc.read_record_batch(message, schema)
        batch.validate(full=True)
    except (pa.ArrowException, ValueError, OSError, MemoryError) as error:
        raise InvalidSuperBatchError(f"the super-batch is not valid Arrow: {brief(error)}") from error
    if batch.num_rows != row_count:
        raise InvalidSuperBatchError(
            f"the super-batch has {batch.num_rows} rows, its header announced {row_count}; announce what you send"
        )
    example_id = _detached(batch.column(EXAMPLE_ID)) if EXAMPLE_ID in schema.names[len(columns) :] else None
    super_batch = SuperBatch({column.name: _values(batch, column) for column in columns}, row_count, example_id)
    _refuse_one_id_for_two(super_batch)
    return super_batch


def _refuse_one_id_for_two(super_batch: SuperBatch) -> None:
    """Refuses two candidates with the same id that are not the same example.

    The same example twice is legitimate: loaders draw with replacement, go from one epoch into the next within a
    super-batch, and repeat some to give every rank as many.
    """
    ids = super_batch.example_id
    if ids is None or pc.count_distinct(ids).as_py() == len(ids) - ids.null_count:
        return
    seen: dict[int | str, int] = {}
    for row, id_ in enumerate(ids.to_pylist()):
        if id_ is None:
            continue
        first = seen.setdefault(id_, row)
        if first != row and any(
            not np.array_equal(values[first], values[row]) for values in super_batch.columns.values()
        ):
            raise InvalidSuperBatchError(
                f"example_id {quoted(id_)} is in rows {first} and {row}, and their content differs; give every example "
                "an id of its own, and views of one example too, or send no example_id"
            )


def _read_messages(body: Body) -> tuple[pa.Schema, pa.Message]:
    buffer = pa.py_buffer(body)
    source = pa.BufferReader(buffer)
    try:
        reader = pa.MessageReader.open_stream(source)
        head = reader.read_next_message()
        if head.type != "schema":
            raise InvalidSuperBatchError(f"the super-batch starts with a {head.type}; send an Arrow IPC stream")
        schema = pa.ipc.read_schema(head)
        _ = schema.names  # raises where a name is not UTF-8
        message = reader.read_next_message()
        if message.type != "record batch":
            raise InvalidSuperBatchError(f"a {message.type} follows the schema; send exactly one record batch")
        if _is_compressed(message.metadata):
            raise InvalidSuperBatchError("the super-batch is compressed; send it uncompressed")
        _expect_end(reader)
    except InvalidSuperBatchError:
        raise
    except (pa.ArrowException, ValueError, OSError, EOFError, StopIteration, MemoryError) as error:
        raise InvalidSuperBatchError(
            f"the super-batch is not an Arrow IPC stream of one record batch: {brief(error)}"
        ) from error
    return schema, message


def _expect_end(reader: pa.MessageReader) -> None:
    try:
        extra = reader.read_next_message()
    except (StopIteration, EOFError):
        return
    raise InvalidSuperBatchError(f"a {extra.type} follows the record batch; send exactly one record batch")


def _is_compressed(metadata: pa.Buffer) -> bool:
    """Tells whether an IPC message names a compression codec, before Arrow would decompress it.

    Reads field 3 (`compression`) of the RecordBatch table, field 2 (`header`) of the Message table
    of the flatbuffer. Source: the Arrow columnar format, `Message.fbs`.
    """
    data = metadata.to_pybytes()

    def field_position(table: int, field: int) -> int | None:
        vtable = table - struct.unpack_from("<i", data, table)[0]
        slot = 4 + 2 * field
        if slot >= struct.unpack_from("<H", data, vtable)[0]:
            return None
        offset = struct.unpack_from("<H", data, vtable + slot)[0]
        return table + offset if offset else None

    try:
        header = field_position(struct.unpack_from("<I", data, 0)[0], 2)
        if header is None:
            raise InvalidSuperBatchError("the record batch has no header")
        return field_position(header + struct.unpack_from("<I", data, header)[0], 3) is not None
    except struct.error as error:
        raise InvalidSuperBatchError("the record batch has a header that points outside itself") from error


def _check_schema(schema: pa.Schema, columns: tuple[ColumnSpec, ...]) -> None:
    expected = [column.name for column in columns]
    names = list(schema.names)
    if names[:-1] == expected and names[-1] == EXAMPLE_ID:
        if schema.field(EXAMPLE_ID).type not in _EXAMPLE_ID_TYPES:
            raise InvalidSuperBatchError(
                f"column example_id is {_type_name(schema.field(EXAMPLE_ID).type)}; use int64 or string"
            )
    elif names != expected:
        raise InvalidSuperBatchError(
            f"the super-batch has columns {quoted(names)}; this run expects {expected}, optionally followed by "
            "example_id"
        )
    for column in columns:
        actual = schema.field(column.name).type
        if actual != column.arrow_type():
            raise InvalidSuperBatchError(
                f"column {column.name!r} is {_describe(actual)}; this run expects "
                f"{column.element_type} of shape {list(column.shape)} per example"
            )


def _detached(array: pa.Array) -> pa.Array:
    """Returns a copy, which a ledger may keep when the body is long gone."""
    buffers = [None if buffer is None else pa.py_buffer(buffer.to_pybytes()) for buffer in array.buffers()]
    return pa.Array.from_buffers(array.type, len(array), buffers, array.null_count, array.offset)


def _values(batch: pa.RecordBatch, column: ColumnSpec) -> NDArray[np.generic]:
    array = batch.column(column.name)
    for _ in column.shape:
        _refuse_nulls(array, column)
        array = array.flatten()
    _refuse_nulls(array, column)
    values: NDArray[np.generic] = array.to_numpy(zero_copy_only=True).reshape(batch.num_rows, *column.shape)
    column.check_values(values)
    return values


def _refuse_nulls(array: pa.Array, column: ColumnSpec) -> None:
    if array.null_count:
        raise InvalidSuperBatchError(f"column {column.name!r} has {array.null_count} nulls; fill or drop them")


def _rounded_up(count: int) -> int:
    """Returns the next number of five binary digits and then zeros: 16 between a power of two and the next."""
    step = 1 << max(0, (count - 1).bit_length() - 5)
    return -(-count // step) * step


def _bytes_by_row(values: NDArray[np.generic], rows: int) -> NDArray[np.uint8]:
    """Returns the values of each row as bytes, uint8 `[rows, n]`; a copy only where they do not lie so."""
    plain = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return plain.view(np.uint8).reshape(rows, -1) if plain.ndim > 1 else plain.reshape(rows, 1).view(np.uint8)


def _padded(values: NDArray[np.generic], rows: int) -> NDArray[np.generic]:
    if len(values) == rows:
        return values
    return np.concatenate([values, np.repeat(values[-1:], rows - len(values), axis=0)])


def _describe(kind: pa.DataType) -> str:
    shape = []
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
    return f"{_type_name(kind)} of shape {quoted(shape)} per example"


def _type_name(kind: pa.DataType) -> str:
    # The name of a type that has parameters, names of fields or a time zone, may be as long as the body.
    return str(kind) if type(kind) is pa.DataType else f"a {type(kind).__name__}"
