"""A run's ledger as a table: what each answer was drawn from, and what its memory bank did. Called by `client.py`.

The columns are shared with the service, which writes them; docs/ledger.md says what they mean.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from preceptor.channel import Connection, rpc_failure
from preceptor.errors import InternalError, RunNotFoundError, StepsNotKeptError
from preceptor.v1 import ledger_pb2

FORMAT_KEY = b"preceptor.ledger"
"""Key of the schema's metadata under which `FORMAT` lies."""
FORMAT = b"2"
"""Changes when a column changes its name, type or meaning."""
FORMER_FORMAT = b"1"
"""Of services that kept no rows of memory banks: it lacks `FORMER_LACKS`, and every row is a `select`."""
FORMER_LACKS = frozenset({"kind", "bank_operation", "bank_examples", "learner_versions", "learner_steps"})
"""Columns that came since."""
RUN_KEY = b"preceptor.run"
"""Key of the schema's metadata: `{"create_time_s": ..., "spec": ...}`, the run's settings as the contract's JSON."""

SCHEMA: Any = pa.schema(
    [
        pa.field("time", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("rank", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("candidates", pa.int64(), nullable=False),
        pa.field("learner_version", pa.int64()),
        pa.field("learner_step", pa.int64()),
        pa.field("reference_digest", pa.string()),
        pa.field("reference_fold_1_digest", pa.string()),
        pa.field("is_fallback", pa.bool_(), nullable=False),
        pa.field("fallback_reason", pa.string()),
        pa.field("digest", pa.binary()),
        pa.field("example_id", pa.list_(pa.int64())),
        pa.field("example_id_text", pa.list_(pa.string())),
        pa.field("scores", pa.list_(pa.float32())),
        pa.field("indices", pa.list_(pa.int64())),
        pa.field("weights", pa.list_(pa.float32())),
        pa.field("bank_operation", pa.int64()),
        pa.field("bank_examples", pa.int64()),
        pa.field("learner_versions", pa.list_(pa.int64())),
        pa.field("learner_steps", pa.list_(pa.int64())),
    ]
)
"""The columns of a ledger, one row per answered super-batch and per operation of a memory bank."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LedgerExport:
    """What was written to a file.

    Attributes:
        steps: rows, one per answered super-batch and per operation of a memory bank.
        damaged: what is missing because the store holds it damaged, a sentence each.
    """

    steps: int
    damaged: tuple[str, ...]


def read_ledger(connection: Connection, request: ledger_pb2.ReadLedgerRequest, timeout_s: float) -> Any:
    """Returns the rows of the range as a `pyarrow.Table`; logs a warning for each damaged segment.

    Raises:
        PreceptorError: as `Run.ledger` says.
    """
    reading = _Reading(connection, request, timeout_s)
    found = list(reading.tables())
    for damage in reading.damaged:
        logger.warning("run %s: %s", request.run_id, damage)
    return pa.concat_tables(found) if found else SCHEMA.empty_table()


def export_ledger(
    connection: Connection, request: ledger_pb2.ReadLedgerRequest, path: str | os.PathLike[str], timeout_s: float
) -> LedgerExport:
    """Writes the rows of the range to a new Parquet file, which appears whole; holds one segment in memory.

    Raises:
        FileExistsError: there is something at `path`.
        OSError: it cannot be written.
        PreceptorError: as `Run.ledger` says.
    """
    file = Path(path)
    if file.exists():
        raise FileExistsError(f"{file} exists; name a new file")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"there is no directory {file.parent}; make it, or name another file")
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}.part")
    reading, steps = _Reading(connection, request, timeout_s), 0
    writer: Any = None
    try:
        for table in reading.tables():
            if writer is None:
                writer = pq.ParquetWriter(partial, table.schema, compression="zstd")
            writer.write_table(table)
            steps += len(table)
        if writer is None:
            damage = f"; {'; '.join(reading.damaged)}" if reading.damaged else " yet"
            raise StepsNotKeptError(f"the ledger of run {request.run_id!r} holds nothing to write{damage}")
        writer.close()
        partial.rename(file)
    finally:
        if writer is not None and writer.is_open:
            writer.close()
        partial.unlink(missing_ok=True)
    return LedgerExport(steps, tuple(reading.damaged))


def per_candidate(table: Any) -> Any:
    """Unfolds a ledger to one row per candidate, for a data frame.

    Args:
        table: a `pyarrow.Table` with the columns of `SCHEMA`, or those of `FORMER_FORMAT`.

    Returns:
        A `pyarrow.Table`. Of kinds `select` and `remember` it has a row per candidate of the super-batch, of `sample`
        one per example that was drawn: what else was in the bank stands in rows of `remember`. Columns: `time`, `step`,
        `rank`, `kind` and `is_fallback`; `learner_version` behind the score; `position` in the super-batch, null for
        `sample`; `example_id`, `example_id_text` and `score`, null where there is none; `drawn`, the place in the order
        drawn from 0 on, null for a candidate that was not selected; `weight`, null likewise.
    """
    table = with_all_columns(table).combine_chunks()
    counts, is_sample = rows_unfolded(table), _is_sample(table)
    starts = np.cumsum(counts) - counts
    of = np.repeat(np.arange(len(table)), counts)
    columns: dict[str, Any] = {
        name: table[name].take(pa.array(of))
        for name in ("time", "step", "rank", "kind", "learner_version", "is_fallback")
    }
    columns["position"] = pa.array(np.arange(len(of)) - starts[of], mask=is_sample[of])
    unfolded = (("example_id",) * 2, ("example_id_text",) * 2, ("score", "scores"), ("versions", "learner_versions"))
    for name, source in unfolded:
        is_there = np.repeat(table[source].is_valid().to_numpy(), counts)
        columns[name] = _spread(pc.list_flatten(table[source]), np.flatnonzero(is_there), len(of))
    columns["learner_version"] = pc.coalesce(columns["learner_version"], columns.pop("versions"))
    drawn_counts = np.where(is_sample, counts, _lengths(table["indices"]))
    drawn_of = np.repeat(np.arange(len(table)), drawn_counts)
    place = np.arange(len(drawn_of)) - (np.cumsum(drawn_counts) - drawn_counts)[drawn_of]
    within = place.copy()  # a sample lists what was drawn, in that order
    within[~is_sample[drawn_of]] = pc.list_flatten(table["indices"]).to_numpy()
    chosen = starts[drawn_of] + within
    columns["drawn"] = _spread(pa.array(place), chosen, len(of))
    weighted = table["weights"].is_valid().to_numpy()[drawn_of]
    columns["weight"] = _spread(pc.list_flatten(table["weights"]), chosen[weighted], len(of))
    return pa.table(columns)


def rows_unfolded(table: Any) -> Any:
    """Returns how many rows `per_candidate` makes of each row of a table with the columns of `SCHEMA`, int64."""
    return np.where(_is_sample(table), _lengths(table["scores"]), table["candidates"].to_numpy())


def with_all_columns(table: Any) -> Any:
    """Returns a table of `FORMER_FORMAT` with the columns that came since, or as it is where it has them."""
    if "kind" in table.schema.names:
        return table
    for name in (name for name in SCHEMA.names if name in FORMER_LACKS):
        values = ["select"] * len(table) if name == "kind" else [None] * len(table)
        table = table.append_column(SCHEMA.field(name), pa.array(values, SCHEMA.field(name).type))
    return table.replace_schema_metadata({**(table.schema.metadata or {}), FORMAT_KEY: FORMAT})


def _is_sample(table: Any) -> Any:
    return pc.equal(table["kind"], "sample").to_numpy()


def _lengths(lists: Any) -> Any:
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)


def _spread(values: Any, places: Any, count: int) -> Any:
    """Returns `count` rows with `values` at `places`, which all differ, and nulls elsewhere."""
    source = np.full(count, -1)
    source[places] = np.arange(len(places))
    return values.take(pa.array(source, mask=source < 0))


class _Reading:
    """One call: its tables, and what it found damaged so far."""

    def __init__(self, connection: Connection, request: ledger_pb2.ReadLedgerRequest, timeout_s: float) -> None:
        self._connection = connection
        self._request = request
        self._timeout_s = timeout_s
        self._run: bytes | None = None
        self._kept = ledger_pb2.LedgerKept()
        self._seen: set[tuple[Any, ...]] = set()
        self.damaged: list[str] = []

    def tables(self) -> Iterator[Any]:
        """Yields the rows of the range, each answer once."""
        for response in self._responses():
            kind = response.WhichOneof("kind")
            if kind == "segment":
                table = self._rows(response.segment.parquet)
                if len(table):
                    yield table
            elif kind == "kept":
                self._kept = response.kept
            elif kind == "damage":
                damage = response.damage
                self.damaged.append(
                    f"segment {damage.name} is damaged: {damage.steps} of the steps from {damage.first_step} to "
                    f"{damage.last_step} are missing"
                )
        has_range = self._request.HasField("from_step") or self._request.HasField("to_step")
        if has_range and not self._seen and not self.damaged:
            raise StepsNotKeptError(
                f"the ledger of run {self._request.run_id!r} holds {self._kept.steps} of the steps from "
                f"{self._kept.first_step} to {self._kept.last_step}, and none that was asked for"
            )

    def _responses(self) -> Iterator[ledger_pb2.ReadLedgerResponse]:
        call = self._connection.stream("ReadLedger", self._request, self._timeout_s)
        try:
            yield from call
        except grpc.RpcError as raised:
            raise rpc_failure(raised, f"ReadLedger to {self._connection.target}").error from None
        finally:
            call.cancel()

    def _rows(self, content: bytes) -> Any:
        try:
            table = pq.read_table(pa.BufferReader(content))
            if table.schema.metadata.get(FORMAT_KEY) == FORMER_FORMAT:
                table = with_all_columns(table)
            known = table.select(SCHEMA.names).cast(SCHEMA.with_metadata(table.schema.metadata))
            run = table.schema.metadata[RUN_KEY]
        except (pa.ArrowException, AttributeError, ValueError, KeyError, TypeError, OSError) as error:
            raise InternalError(f"the service answered a segment that cannot be read: {error}") from error
        self._run = self._run or run
        if run != self._run:
            raise RunNotFoundError(f"run {self._request.run_id!r} was deleted and created anew while it was read")
        return known.filter(self._wanted(known))

    def _wanted(self, table: Any) -> Any:
        names = ("time", "step", "rank", "bank_operation")
        keys = zip(*(table[name].cast(pa.int64()).to_pylist() for name in names), strict=True)
        wanted = []
        for key in keys:
            is_new = key not in self._seen and self._is_in_range(key[1])
            wanted.append(is_new)
            if is_new:
                self._seen.add(key)
        return pa.array(wanted, pa.bool_())

    def _is_in_range(self, step: int) -> bool:
        request = self._request
        return not (request.HasField("from_step") and step < request.from_step) and not (
            request.HasField("to_step") and step > request.to_step
        )
