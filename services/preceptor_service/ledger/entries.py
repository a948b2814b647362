"""What a ledger keeps of one answer or operation of a memory bank, and many as one Parquet file. Knows no store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from google.protobuf import json_format
from numpy.typing import NDArray

from preceptor.ledger import FORMAT, FORMAT_KEY, RUN_KEY, SCHEMA
from preceptor.runs import spec_to_proto
from preceptor_service.run_store import RunRecord

_ARRAYS = {
    "scores": pa.float32(),
    "indices": pa.int64(),
    "weights": pa.float32(),
    "learner_versions": pa.int64(),
    "learner_steps": pa.int64(),
}
_FIELDS_BYTES = 256
"""About what the fields of fixed size take in memory."""


Kind = Literal["select", "remember", "sample"]
"""A super-batch that was selected from; one that was put into the memory bank; a sub-batch that was drawn from that."""

_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Entry:
    """One answered super-batch, or one operation of a memory bank.

    Attributes:
        time_us: when it was answered, in microseconds since the epoch.
        step, rank: of the trainer.
        candidates: B; of a sample the examples that it was drawn from.
        learner_version, learner_step: behind the scores; None where there is none, and for a sample.
        reference_digest, reference_fold_1_digest: of the references behind the scores; None where there is none.
        fallback_reason: why the draw was uniform; None where it was no fallback.
        digest: of the body, as the client chose it; None for a sample.
        example_id: Arrow array `[B]` of int64 or string; None where the trainer sent none. Of a sample `[b]`, in the
            order drawn.
        scores: float32 `[B]`; empty where nothing was scored. Of a sample `[b]`.
        indices: int64 `[b]`, in the order drawn; empty for a memory bank.
        weights: importance weights, float32 `[b]`; empty where the selector has none.
        kind: what it is.
        bank_operation: its number among the operations of the memory bank, from 1 on; None for a select.
        bank_examples: that the bank held then; None likewise.
        learner_versions, learner_steps: of a sample, behind each score, int64 `[b]`; empty where there is none.
    """

    time_us: int
    step: int
    rank: int
    candidates: int
    learner_version: int | None
    learner_step: int | None
    reference_digest: str | None
    reference_fold_1_digest: str | None
    fallback_reason: str | None
    digest: bytes | None
    example_id: Any
    scores: NDArray[np.float32]
    indices: NDArray[np.int64]
    weights: NDArray[np.float32]
    kind: Kind = "select"
    bank_operation: int | None = None
    bank_examples: int | None = None
    learner_versions: NDArray[np.int64] = field(default_factory=lambda: _NONE)
    learner_steps: NDArray[np.int64] = field(default_factory=lambda: _NONE)

    @property
    def total_bytes(self) -> int:
        """Bytes in memory, about."""
        ids = 0 if self.example_id is None else int(self.example_id.get_total_buffer_size())
        arrays = (self.scores, self.indices, self.weights, self.learner_versions, self.learner_steps)
        return _FIELDS_BYTES + ids + sum(array.nbytes for array in arrays)


def to_table(record: RunRecord, entries: Sequence[Entry]) -> pa.Table:
    """Returns one row per entry, in the columns of `preceptor.ledger.SCHEMA`, with the run in its metadata."""
    ids = [entry.example_id for entry in entries]
    columns: dict[str, Any] = {
        column.name: [getattr(entry, column.name) for entry in entries]
        for column in fields(Entry)
        if column.name not in ("time_us", "example_id", *_ARRAYS)
    }
    columns |= {
        "time": [entry.time_us for entry in entries],
        "is_fallback": [entry.fallback_reason is not None for entry in entries],
        "example_id": _lists([one if _is_of(one, pa.int64()) else None for one in ids], pa.int64()),
        "example_id_text": _lists([one if _is_of(one, pa.string()) else None for one in ids], pa.string()),
    }
    for name, kind in _ARRAYS.items():
        columns[name] = _lists([_array(getattr(entry, name)) for entry in entries], kind)
    schema = SCHEMA.with_metadata({FORMAT_KEY: FORMAT, RUN_KEY: _described(record)})
    return pa.table([pa.array(columns[column.name], column.type) for column in schema], schema=schema)


def to_parquet(table: pa.Table) -> bytes:
    """Returns the table as a Parquet file of one row group."""
    sink = pa.BufferOutputStream()
    # Scores and indices hardly repeat; a dictionary of them would only be built to be thrown away.
    repeated = ["kind", "reference_digest", "reference_fold_1_digest"]
    pq.write_table(table, sink, compression="zstd", use_dictionary=repeated)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def from_parquet(content: bytes) -> pa.Table:
    """Returns the table that `to_parquet` wrote."""
    return pq.read_table(pa.BufferReader(content))


def _described(record: RunRecord) -> bytes:
    run = {"create_time_s": record.create_time_s, "spec": json_format.MessageToDict(spec_to_proto(record.spec))}
    return json.dumps(run, sort_keys=True).encode()


def _is_of(ids: Any, kind: pa.DataType) -> bool:
    return ids is not None and ids.type == kind


def _array(values: NDArray[Any]) -> Any:
    return pa.array(values) if len(values) else None


def _lists(rows: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Returns a list per row, a null for None, without a Python object per value."""
    lengths = [0 if row is None else len(row) for row in rows]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    present = [row for row in rows if row is not None]
    values = pa.concat_arrays(present) if present else pa.array([], kind)
    absent = pa.array([row is None for row in rows], pa.bool_())
    return pa.ListArray.from_arrays(offsets, values, mask=absent)
