"""Valid bodies, Arrow streams and safetensors files, and what becomes of them: the seeds of the decoders' fuzzing."""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.torch import save

from preceptor import batches
from preceptor_service.columns import ColumnSpec, token_columns
from tests.reliability.mutation import INTEGERS, mutated_bytes
from tests.service import digits

ROWS = 8
COLUMNS: tuple[tuple[ColumnSpec, ...], ...] = (
    (ColumnSpec("image", "uint8", (1, 8, 8)), ColumnSpec("label", "int64", below=4)),
    (ColumnSpec("image", "float", (1, 8, 8)), ColumnSpec("label", "int64", below=4)),
    (*token_columns(8, 100), ColumnSpec("label", "int64", below=4)),
)
"""Columns of runs; the first are those of the run that is fuzzed over the socket."""


@cache
def arrow_seeds() -> tuple[tuple[bytes, int], ...]:
    """Valid bodies, each with the position of its columns in `COLUMNS`."""
    rng = np.random.default_rng(0)
    found = []
    for position, columns in enumerate(COLUMNS):
        batch = {
            column.name: rng.integers(0, column.below or 4, (ROWS, *column.shape)).astype(column.dtype)
            for column in columns
        }
        ids = (None, np.arange(ROWS), [f"example-{number}" for number in range(ROWS)])
        found += [(bytes(batches.encode(batch, example_id).body), position) for example_id in ids]
    return tuple(found)


def arrow_case(rng: random.Random) -> tuple[bytes, int, int]:
    """A body that is mutated or strange, the position of the columns that it is read with, and its announced rows."""
    body, position = rng.choice(arrow_seeds())
    change = rng.random()
    if change < 0.4:
        body = mutated_bytes(rng, body)
    elif change < 0.75:
        body = _with_changed_words(rng, body)
    elif change < 0.8:
        other, _ = rng.choice(arrow_seeds())
        at = 8 * rng.randrange(min(len(body), len(other)) // 8)
        body = body[:at] + other[at:]
    else:
        body = strange_stream(rng, position)
        if change > 0.93:
            body = _with_changed_words(rng, body)
    return body, position, rng.choice((*[ROWS] * 8, 1, rng.choice((0, 7, 2**40))))


def _with_changed_words(rng: random.Random, body: bytes) -> bytes:
    """`body` with one to three aligned numbers of its flatbuffers replaced: offsets, lengths, counts, types."""
    changed = bytearray(body)
    for _ in range(rng.randint(1, 3)):
        at, size = 4 * rng.randrange(min(len(changed), 1200) // 4), rng.choice((2, 4, 4, 8))
        if at + size > len(changed):
            continue
        now = int.from_bytes(changed[at : at + size], "little")
        wanted = rng.choice((rng.choice(INTEGERS), now + rng.choice((-8, -4, -1, 1, 4, 8)), now * 2, len(body)))
        changed[at : at + size] = (wanted % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(changed)


class _Marked(pa.ExtensionType):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(pa.int64(), "arrow.py_extension_type")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"\x80\x04cos\nsystem\n(S'true'\ntR."

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: Any, serialized: bytes) -> _Marked:
        raise RuntimeError("an extension type of the wire was built")


def _nested(depth: int) -> Any:
    kind = pa.int64()
    for _ in range(depth):
        kind = pa.list_(kind, 1)
    return pa.nulls(ROWS, kind)


_STRANGE: tuple[Callable[[random.Random], Any], ...] = (
    lambda rng: pa.nulls(ROWS, pa.int64()),
    lambda rng: pa.nulls(ROWS),
    lambda rng: pa.array(["a"] * ROWS).dictionary_encode(),
    lambda rng: pa.array([[1]] * ROWS),
    lambda rng: pa.array([{"a": 1}] * ROWS),
    lambda rng: pa.array([[("a", 1)]] * ROWS, pa.map_(pa.string(), pa.int64())),
    lambda rng: pa.array([1.5] * ROWS, pa.float16()),
    lambda rng: pa.array([1.5] * ROWS, pa.float64()),
    lambda rng: pa.array([rng.choice(INTEGERS)] * ROWS, pa.int64()),
    lambda rng: pa.array([b"ab"] * ROWS, pa.binary(2)),
    lambda rng: pa.array(["x" * rng.choice((1, 5000))] * ROWS, pa.large_string()),
    lambda rng: pa.array(["view"] * ROWS, pa.string_view()),
    lambda rng: pa.array([True] * ROWS),
    lambda rng: pa.UnionArray.from_sparse(pa.array([0] * ROWS, pa.int8()), [pa.array([1] * ROWS)]),
    lambda rng: pa.RunEndEncodedArray.from_arrays([ROWS], pa.array([1], pa.int64())),
    lambda rng: pa.ExtensionArray.from_storage(_Marked(), pa.array([1] * ROWS, pa.int64())),
    lambda rng: _nested(rng.choice((1, 3, 40))),
)


def strange_stream(rng: random.Random, position: int) -> bytes:
    """A valid Arrow stream, or file, that is not what a run with `COLUMNS[position]` expects."""
    body = next(body for body, of in arrow_seeds() if of == position)
    batch = pa.ipc.open_stream(body).read_all().to_batches()[0]
    names, arrays = list(batch.schema.names), list(batch.columns)
    for _ in range(rng.randint(1, 2)):
        at, change = rng.randrange(len(names)), rng.random()
        if change < 0.6:
            arrays[at] = rng.choice(_STRANGE)(rng)
        elif change < 0.8:
            names.append(rng.choice(("example_id", "image", "", "x" * 300)))
            arrays.append(rng.choice(_STRANGE)(rng))
        elif len(names) > 1:
            del names[at], arrays[at]
    strange = pa.RecordBatch.from_arrays(arrays, names=names)
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "a": "b"} if rng.random() < 0.2 else None
    strange = strange.replace_schema_metadata(metadata)
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=rng.choice((None, None, None, "zstd", "lz4")))
    start = pa.ipc.new_file if rng.random() < 0.1 else pa.ipc.new_stream
    with start(sink, strange.schema, options=options) as writer:
        for _ in range(rng.choice((1, 1, 1, 1, 0, 2))):
            writer.write_batch(strange)
    return sink.getvalue()


@cache
def weights_file() -> bytes:
    """A safetensors file that fits the runs of `digits`."""
    return save(digits.weights(1))


_TYPES = ("F32", "BF16", "F16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "F4", "OBJECT", "", "f32")
_NAMES = ("../../etc/passwd", "", "head.bias", "x" * 5000, "\0", "__metadata__", "module.head.bias", "é")


def weights_case(rng: random.Random) -> bytes:
    """A safetensors file that is mutated or strange."""
    file = weights_file()
    if rng.random() < 0.35:
        return mutated_bytes(rng, file)
    (length,) = struct.unpack_from("<Q", file)
    header, data = json.loads(file[8 : 8 + length]), file[8 + length :]
    for _ in range(rng.randint(1, 3)):
        _change_header(rng, header)
    text = json.dumps(header).encode()
    if rng.random() < 0.2:
        text = mutated_bytes(rng, text)
    if rng.random() < 0.1:
        text = rng.choice((b"[" * 3000, b'{"a":' * 3000, b"{}", b"", b"null", b" " * 3000 + text, text + b"}" * 3))
    if rng.random() < 0.3:
        at = 4 * rng.randrange(len(data) // 4)
        data = data[:at] + struct.pack("<f", rng.choice((float("nan"), float("inf"), 1e38))) + data[at + 4 :]
    if rng.random() < 0.1:
        data = data[: rng.randrange(len(data))] if rng.random() < 0.5 else data + bytes(rng.randint(1, 99))
    announced = len(text) if rng.random() < 0.9 else rng.choice((0, 1, len(text) - 1, 2**31, 2**63, 2**64 - 1, 10**8))
    return struct.pack("<Q", announced % 2**64) + text + data


def _change_header(rng: random.Random, header: dict[str, Any]) -> None:
    if not header:
        return
    name = rng.choice(list(header))
    entry = header[name]
    change = rng.random()
    if change < 0.1 or not isinstance(entry, dict):
        del header[name]
    elif change < 0.25:
        header[rng.choice(_NAMES)] = header.pop(name) if rng.random() < 0.5 else dict(entry)
    elif change < 0.3:
        header["__metadata__"] = rng.choice(({"a": "b"}, {"a": 1}, [], "x", {"format": "pt"}))
    elif change < 0.5:
        entry["dtype"] = rng.choice(_TYPES)
    elif change < 0.75:
        entry["shape"] = rng.choice(([], [0], [2**62, 2**62], [1] * 70, [8, 1, 3, 3], [-1], [1.5], "x", None))
    else:
        at = 4 * rng.randrange(1000)
        entry["data_offsets"] = rng.choice(([at, at], [at + 4, at], [at, at + 4], [0, 2**63], [-1, 3], [0], "0", None))
