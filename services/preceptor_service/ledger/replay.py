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
import pyarrow.parquet as pq
from google.protobuf import json_format
from numpy.typing import NDArray

from preceptor.errors import PreceptorError
from preceptor.ledger import FORMAT, FORMAT_KEY, RUN_KEY, SCHEMA
from preceptor.runs import RunSpec, spec_from_proto
from preceptor.v1 import run_pb2
from preceptor_service.drawing import Draw, drawn_by_score, drawn_uniformly
from preceptor_service.method_registry import MethodRegistry
from preceptor_service.schedule import count_by_score
from preceptor_service.selectors import Selector

_ROWS_AT_ONCE = 64


class LedgerFileError(Exception):
    """The file is not the export of a ledger; says why."""


@dataclass(frozen=True)
class Replayed:
    """One row, drawn once more; `difference` is None where the same came out."""

    step: int
    rank: int
    difference: str | None


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
        missing = [field.name for field in SCHEMA if not _has(schema, field)]
        if missing:
            raise LedgerFileError(f"{path} lacks the columns {missing} of a ledger, or has them with other types")
        self._path = path

    def replayed(self, methods: MethodRegistry) -> Iterator[Replayed]:
        """Draws each row again, from its scores, the run's settings, its step and its rank alone.

        The same numpy on the same kind of machine gives the same bits; another may round a logarithm differently.

        Raises:
            InvalidRunError: `methods` has no selector of the run's name.
            LedgerFileError: the file is damaged.
        """
        selector = methods.selector(self.spec.selector)
        try:
            for batch in self._file.iter_batches(_ROWS_AT_ONCE, columns=SCHEMA.names):
                for at in range(len(batch)):
                    yield _replayed(self.spec, selector, {name: batch[name][at] for name in SCHEMA.names})
        except (pa.ArrowException, OSError) as error:
            raise LedgerFileError(f"{self._path} is damaged: {error}") from error


def _spec(path: Path, schema: pa.Schema) -> RunSpec:
    metadata = schema.metadata or {}
    if metadata.get(FORMAT_KEY) != FORMAT:
        found = metadata.get(FORMAT_KEY, b"none").decode(errors="replace")[:16]
        raise LedgerFileError(
            f"{path} is not a ledger that this version reads: its format is {found}, {FORMAT.decode()} is known"
        )
    try:
        spec = json.loads(metadata[RUN_KEY])["spec"]
        return spec_from_proto(json_format.ParseDict(spec, run_pb2.RunSpec()))
    except (KeyError, TypeError, ValueError, json_format.ParseError) as error:
        raise LedgerFileError(f"{path} does not say which run it is of: {error}") from error


def _has(schema: pa.Schema, field: pa.Field) -> bool:
    return field.name in schema.names and schema.field(field.name).type == field.type


def _replayed(spec: RunSpec, selector: Selector, row: dict[str, Any]) -> Replayed:
    step, rank = row["step"].as_py(), row["rank"].as_py()
    try:
        return Replayed(step, rank, _difference(spec, selector, row, step, rank))
    except (PreceptorError, ValueError, TypeError, IndexError, OverflowError) as error:
        return Replayed(step, rank, f"cannot be drawn again: {error}")


def _difference(spec: RunSpec, selector: Selector, row: dict[str, Any], step: int, rank: int) -> str | None:
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
