"""Operations, packs and snapshots of a bank as the bytes that lie in the store: checksummed Arrow. Knows no store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from preceptor_service.memory_bank.bank import Bank, Key, Operation, Put, Record, Sample
from preceptor_service.memory_bank.ids import from_arrow, to_arrow
from preceptor_service.memory_bank.rows import Rows

_METADATA = b"preceptor.bank"
_FORMAT = 1
_CHECKSUM_BYTES = 16


class DamagedError(Exception):
    """The bytes are not what was written."""


def operation_to_bytes(operation: Operation) -> bytes:
    """Returns an operation with its outcome."""
    columns: dict[str, Any] = {"id": to_arrow(operation.ids), "score": operation.scores}
    about: dict[str, Any] = {
        "key": operation.key,
        "identity": operation.identity,
        "examples": operation.examples,
    }
    if isinstance(operation, Put):
        columns["content"] = operation.contents
        about |= {
            "learner_version": operation.learner_version,
            "learner_step": operation.learner_step,
            "evicted": operation.evicted,
        }
    else:
        columns |= {"learner_version": operation.learner_versions, "learner_step": operation.learner_steps}
        about["candidates"] = operation.candidates
        if len(operation.weights):
            columns["weight"] = operation.weights
    return _sealed(columns, about)


def operation_from_bytes(content: bytes) -> Operation:
    """Returns the operation that was written.

    Raises:
        DamagedError: it cannot be read.
    """
    columns, about = _opened(content)
    try:
        key = Key(*about["key"])
        ids, scores = from_arrow(columns["id"]), _array(columns["score"])
        if key.kind == "put":
            versions, contents = (about["learner_version"], about["learner_step"]), _contents(columns)
            return Put(key, about["identity"], ids, scores, *versions, contents, about["evicted"], about["examples"])
        weights = _array(columns["weight"]) if "weight" in columns else np.empty(0, np.float32)
        stamps = _array(columns["learner_version"]), _array(columns["learner_step"])
        counts = about["examples"], about.get("candidates", 0)
        return Sample(key, about["identity"], ids, scores, *stamps, weights, *counts)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(str(error)) from error


def pack_to_bytes(operations: Mapping[int, bytes]) -> bytes:
    """Returns operations, by number, as they lie in the store, in one piece."""
    return _sealed(
        {
            "number": pa.array(list(operations), pa.int64()),
            "operation": pa.array(list(operations.values()), pa.large_binary()),
        },
        {},
    )


def pack_from_bytes(content: bytes) -> dict[int, bytes]:
    """Returns the operations that were packed.

    Raises:
        DamagedError: it cannot be read.
    """
    columns, _ = _opened(content)
    try:
        return dict(zip(columns["number"].to_pylist(), columns["operation"].to_pylist(), strict=True))
    except KeyError as error:
        raise DamagedError(str(error)) from error


def snapshot_to_bytes(bank: Bank) -> bytes:
    """Returns the state of a bank."""
    rows = bank.rows
    columns = {
        "id": to_arrow(rows.ids),
        "score": rows.scores,
        "learner_version": rows.learner_versions,
        "learner_step": rows.learner_steps,
        "put_by": rows.put_by,
        "times_sampled": rows.times_sampled,
        "content": rows.contents,
    }
    about = {
        "number": bank.number,
        "records": [[*key, *record] for key, record in bank.records.items()],
        "forgotten": [[*horizon, step] for horizon, step in bank.forgotten.items()],
    }
    return _sealed(columns, about)


def snapshot_from_bytes(content: bytes) -> Bank:
    """Returns the bank that was written.

    Raises:
        DamagedError: it cannot be read.
    """
    columns, about = _opened(content)
    try:
        names = ("score", "learner_version", "learner_step", "put_by", "times_sampled")
        values = [*(_array(columns[name]) for name in names), _contents(columns)]
        rows = Rows(from_arrow(columns["id"]), *values)
        records = {Key(*entry[:3]): Record(*entry[3:]) for entry in about["records"]}
        horizons = {(kind, rank): step for kind, rank, step in about["forgotten"]}
        return Bank(rows, about["number"], records, horizons)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(str(error)) from error


def _sealed(columns: dict[str, Any], about: dict[str, Any]) -> bytes:
    table = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps({"format": _FORMAT, **about})})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return _checksum(content) + content


def _opened(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    checksum, body = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
    if _checksum(body) != checksum:
        raise DamagedError("its checksum is wrong")
    try:
        table = pa.ipc.open_stream(body).read_all()
        about = json.loads(table.schema.metadata[_METADATA])
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise DamagedError(str(error)) from error
    if about.get("format") != _FORMAT:
        raise DamagedError(
            f"its format is {about.get('format')!r}, {_FORMAT} is known; was it written by a newer version?"
        )
    return {name: table[name].combine_chunks() for name in table.column_names}, about


def _array(column: Any) -> Any:
    """Returns the values in memory of their own: an array that is a view would keep the whole file."""
    return np.array(column)


def _contents(columns: dict[str, Any]) -> Any:
    """Returns what is known of contents; an older gateway wrote none."""
    return _array(columns["content"]) if "content" in columns else np.zeros(len(columns["id"]), np.uint64)


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_CHECKSUM_BYTES]
