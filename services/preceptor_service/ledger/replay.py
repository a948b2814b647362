"""Replay: a ledger's rows drawn once more, and compared bit for bit. Called by `preceptor ledger replay`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from google.protobuf import json_format
from numpy.typing import NDArray

from preceptor.errors import PreceptorError
from preceptor.ledger import FORMAT, FORMAT_KEY, FORMER_FORMAT, FORMER_LACKS, RUN_KEY, SCHEMA, with_all_columns
from preceptor.runs import RunSpec, spec_from_proto
from preceptor.v1 import run_pb2
from preceptor_service.drawing import Draw, drawn_by_score, drawn_uniformly
from preceptor_service.ledger.bank_replay import BankReplay, BankRow, Found
from preceptor_service.method_registry import MethodRegistry
from preceptor_service.schedule import count_by_score
from preceptor_service.selectors import Selector

_ROWS_AT_ONCE = 64


class LedgerFileError(Exception):
    """The file is not the export of a ledger; says why."""


@dataclass(frozen=True)
class Replayed:
    """One row, drawn once more; `difference` is None where the same came out.

    `is_known` is False where nothing can come out: a row of a memory bank of which earlier operations are not there.
    """

    step: int
    rank: int
    difference: str | None
    is_known: bool = True


class ReplayFile:
    """An exported ledger, opened. Holds some rows of it in memory.

    Raises:
        LedgerFileError: it cannot be read, or is no ledger.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = pq.ParquetFile(path)
            schema = self._file.schema_arrow
        except (pa.ArrowException, OSError, ValueError) as error:
            told = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
            raise LedgerFileError(f"cannot read {path}: {told}") from error
        self.spec = _spec(path, schema)
        self._columns = [
            name for name in SCHEMA.names if schema.metadata[FORMAT_KEY] != FORMER_FORMAT or name not in FORMER_LACKS
        ]
        missing = [name for name in self._columns if not _has(schema, SCHEMA.field(name))]
        if missing:
            raise LedgerFileError(f"{path} lacks the columns {missing} of a ledger, or has them with other types")
        self._path = path

    def replayed(self, methods: MethodRegistry) -> Iterator[Replayed]:
        """Draws each row again: a super-batch from its scores, the run's settings, its step and its rank alone.

        What was sampled from a memory bank follows from what was done to it before, which is done again in the order of
        the operations' numbers. The same numpy on the same kind of machine gives the same bits; another may round a
        logarithm differently.

        Raises:
            InvalidRunError: `methods` has no selector of the run's name.
            LedgerFileError: the file is damaged.
        """
        selector = methods.selector(self.spec.selector)
        try:
            bank = self._bank(selector)
            for batch in self._file.iter_batches(_ROWS_AT_ONCE, columns=self._columns):
                table = with_all_columns(pa.Table.from_batches([batch]))
                for at in range(len(table)):
                    row = {name: table[name][at] for name in SCHEMA.names}
                    number = row["bank_operation"].as_py()
                    if bank is None or number is None:
                        yield _replayed(self.spec, selector, row)
                    else:
                        yield from (_of_bank(found) for found in bank.add(BankRow(number, row)))
        except (pa.ArrowException, OSError) as error:
            raise LedgerFileError(f"{self._path} is damaged: {error}") from error

    def _bank(self, selector: Selector) -> BankReplay | None:
        """Returns the run's memory bank, still empty; None where it has none."""
        if self.spec.memory_bank is None or "bank_operation" not in self._columns:
            return None
        numbers = pc.drop_null(self._file.read(columns=["bank_operation"])["bank_operation"])
        return BankReplay(self.spec, selector, numbers.to_numpy())


def _spec(path: Path, schema: pa.Schema) -> RunSpec:
    metadata = schema.metadata or {}
    if metadata.get(FORMAT_KEY) not in (FORMAT, FORMER_FORMAT):
        found = metadata.get(FORMAT_KEY, b"none").decode(errors="replace")[:16]
        raise LedgerFileError(
            f"{path} is not a ledger that this version reads: its format is {found}, {FORMER_FORMAT.decode()} and "
            f"{FORMAT.decode()} are known"
        )
    try:
        spec = json.loads(metadata[RUN_KEY])["spec"]
        return spec_from_proto(json_format.ParseDict(spec, run_pb2.RunSpec()))
    except (KeyError, TypeError, ValueError, json_format.ParseError) as error:
        raise LedgerFileError(f"{path} does not say which run it is of: {error}") from error


def _has(schema: pa.Schema, field: pa.Field) -> bool:
    return field.name in schema.names and schema.field(field.name).type == field.type


def _of_bank(found: Found) -> Replayed:
    step, rank = (found.row.columns[name].as_py() for name in ("step", "rank"))
    return Replayed(step, rank, found.difference, found.is_known)


def _replayed(spec: RunSpec, selector: Selector, row: dict[str, Any]) -> Replayed:
    step, rank = row["step"].as_py(), row["rank"].as_py()
    try:
        return Replayed(step, rank, _difference(spec, selector, row, step, rank))
    except (PreceptorError, ValueError, TypeError, IndexError, OverflowError) as error:
        return Replayed(step, rank, f"cannot be drawn again: {error}")


def _difference(spec: RunSpec, selector: Selector, row: dict[str, Any], step: int, rank: int) -> str | None:
    if (kind := row["kind"].as_py()) != "select":
        return f"its kind is {kind!r}, and it is no operation of a memory bank"
    rows, scores = row["candidates"].as_py(), _values(row["scores"], np.float32)
    recorded, weights = _values(row["indices"], np.int64), _values(row["weights"], np.float32)
    draw = Draw(step, rank, len(recorded))
    if not 1 <= len(recorded) <= rows:
        return f"{len(recorded)} of {rows} candidates were drawn, which cannot be"
    by_score = count_by_score(spec, step, len(recorded))
    is_scored = by_score > 0 and not row["is_fallback"].as_py()
    if len(scores) != (rows if is_scored else 0):
        return f"it has {len(scores)} scores for {rows} candidates"
    if is_scored:
        again, weights_again = drawn_by_score(spec, selector, scores, draw, by_score)
    else:
        again, weights_again = drawn_uniformly(spec, selector, rows, draw)
    if not np.array_equal(again, recorded):
        place = int(np.flatnonzero(again != recorded)[0])
        return f"draw {place} was {recorded[place]}, and is {again[place]} now"
    if weights_again.tobytes() != weights.tobytes():
        return "the importance weights differ"
    return None


def _values(scalar: Any, kind: type[Any]) -> NDArray[Any]:
    """Returns the values of a list, or none for a null."""
    return np.empty(0, kind) if scalar.values is None else scalar.values.to_numpy(zero_copy_only=False).astype(kind)
