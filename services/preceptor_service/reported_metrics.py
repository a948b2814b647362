"""`ReportedMetrics`: what trainers measured of their runs, durable beside the weights. Called by the gateway.

    runs/<run_id>/…/reported/<checksum>.json

A piece holds all that was known when it was written, and takes the place of those that it was made from. Gateways that
write at once leave a piece each; whoever writes next makes one of them, and nothing that was answered is lost.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from preceptor.errors import InvalidMetricsError, ResourceExhaustedError, RunNotFoundError, UnavailableError
from preceptor.quoting import quoted
from preceptor_service.run_store import RunRecord, RunStore
from preceptor_service.storage import Storage
from preceptor_service.weight_staging import disk_errors

MAX_NAMES = 64
"""Metrics of one run."""
MAX_POINTS = 20_000
"""Values of one run, over all of its metrics: at most about 2 MB in the store."""

_ROLE = "reported"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_./-]{0,63}")
_PIECE = re.compile(r"([0-9a-f]{32})\.json")
_INT64_MAX = 2**63 - 1
_TRIES = 5

Points = dict[tuple[str, int], tuple[int, float]]
"""(name, step) → when it was reported, in microseconds since the epoch, and the value. The latest counts."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reported:
    """All that was reported of one run.

    Attributes:
        series: name → step → value, steps ascending.
        damaged_pieces: what cannot be read, and is missing.
    """

    series: Mapping[str, Mapping[int, float]]
    damaged_pieces: int = 0


class ReportedMetrics:
    """The reported metrics of all runs. Blocking; safe for any number of threads and processes."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._runs = RunStore(storage)

    def report(self, record: RunRecord, step: int, values: Mapping[str, float]) -> None:
        """Keeps `values`, measured at `step`; durable once it returns. Repeating it is harmless.

        Raises:
            InvalidMetricsError: a name, a value or the step is out of range.
            ResourceExhaustedError: the run would have more than `MAX_NAMES` names or `MAX_POINTS` values.
            RunNotFoundError: this life of the run is over.
            UnavailableError, DiskFullError: the store does not take it.
        """
        check_values(step, values)
        now = time.time_ns() // 1000
        try:
            if not self._runs.holds(record):
                raise FileNotFoundError(record.spec.run_id)
            folder = self._storage.open_versions(record.spec.run_id, _ROLE)
            known, pieces, _ = self._read(folder)
            points = _merged([known, {(name, step): (now, float(value)) for name, value in values.items()}])
            _check_bounds(record.spec.run_id, known, points)
            content = _to_json(points)
            name = f"{_checksum(content)}.json"
            with disk_errors():
                self._storage.create(f"{folder}/{name}", content)
            self._remove(folder, [piece for piece in pieces if piece != name])
            if not self._runs.holds(record):
                self._remove(folder, [name])
                raise FileNotFoundError(folder)
        except FileNotFoundError:
            raise RunNotFoundError(f"run {record.spec.run_id!r} was deleted; create it again") from None

    def read(self, run_id: str) -> Reported:
        """Returns what is kept of a run; nothing where it is gone.

        Raises:
            UnavailableError: the store cannot be read.
        """
        folder = self._storage.find_versions(run_id, _ROLE)
        points, _, damaged = ({}, [], 0) if folder is None else self._read(folder)
        series: dict[str, dict[int, float]] = {}
        for (name, step), (_, value) in sorted(points.items()):
            series.setdefault(name, {})[step] = value
        return Reported(series, damaged)

    def _read(self, folder: str) -> tuple[Points, list[str], int]:
        """Returns what the pieces in `folder` hold together, the names of the sound ones, and how many are not."""
        for _ in range(_TRIES):
            pieces = sorted(name for name in self._storage.names(folder) if _PIECE.fullmatch(name))
            try:
                contents = {name: self._storage.read_once(f"{folder}/{name}") for name in pieces}
            except FileNotFoundError:
                continue  # replaced since they were listed
            sound = [name for name in pieces if name == f"{_checksum(contents[name])}.json"]
            for name in set(pieces) - set(sound):
                logger.warning("%s/%s is damaged in the store; what it held is missing", folder, name)
            return _merged(_from_json(contents[name]) for name in sound), sound, len(pieces) - len(sound)
        raise UnavailableError(f"metrics in {folder} are replaced faster than they are read; try again")

    def _remove(self, folder: str, pieces: Iterable[str]) -> None:
        for piece in pieces:
            with suppress(FileNotFoundError):  # another gateway was faster, or the run is gone
                self._storage.remove(f"{folder}/{piece}")


def check_values(step: int, values: Mapping[str, float]) -> None:
    """Checks what a trainer reports.

    Raises:
        InvalidMetricsError: naming what is wrong, its value and the limit.
    """
    if not 0 <= step <= _INT64_MAX:
        raise InvalidMetricsError(f"step is {step}; it starts at 0")
    if not 1 <= len(values) <= MAX_NAMES:
        raise InvalidMetricsError(f"{len(values)} metrics were reported at once; give 1 to {MAX_NAMES}")
    for name, value in values.items():
        if not _NAME.fullmatch(name):
            raise InvalidMetricsError(f"a metric is named {quoted(name)}; names match {_NAME.pattern}")
        if not math.isfinite(value):
            raise InvalidMetricsError(f"metric {name!r} is {value} at step {step}; report finite numbers")


def _check_bounds(run_id: str, known: Points, points: Points) -> None:
    for what, limit, before, after in (
        ("names", MAX_NAMES, len({name for name, _ in known}), len({name for name, _ in points})),
        ("values", MAX_POINTS, len(known), len(points)),
    ):
        if after > max(limit, before):
            raise ResourceExhaustedError(
                f"run {run_id!r} would have {after} {what} of reported metrics, the limit is {limit}; report fewer or "
                "less often"
            )


def _merged(parts: Iterable[Points]) -> Points:
    """Returns the latest of every (name, step); of two at once the larger, whatever the order."""
    points: Points = {}
    for part in parts:
        for key, found in part.items():
            points[key] = max(points.get(key, found), found)
    return points


def _to_json(points: Points) -> bytes:
    rows = [[name, step, *found] for (name, step), found in sorted(points.items())]
    return json.dumps(rows, allow_nan=False, separators=(",", ":")).encode()


def _from_json(content: bytes) -> Points:
    return {(str(name), int(step)): (int(at), float(value)) for name, step, at, value in json.loads(content)}


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
