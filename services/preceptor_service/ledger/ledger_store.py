"""`LedgerStore`: the ledgers of all runs, as checksummed segments beside their weights. Called by `Ledger`.

    runs/<run_id>/…/ledger/<time>-<writer>-<steps>-<first step>-<last step>-<bytes>-<checksum>.parquet

A segment never changes; what bounds and ranges need to know of it stands in its name. It goes with its run.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pyarrow as pa

from preceptor.errors import PreceptorError
from preceptor_service.config import LedgerConfig
from preceptor_service.ledger.entries import Entry, from_parquet, to_parquet, to_table
from preceptor_service.run_store import RunRecord, RunStore
from preceptor_service.storage import Storage
from preceptor_service.weight_staging import disk_errors

_ROLE = "ledger"
_NAME = re.compile(r"(\d{17})-([0-9a-f]{8})-(\d{7})-(\d+)-(\d+)-(\d+)-([0-9a-f]{32})\.parquet")
_SEGMENT_BYTES = 1 << 20
_SMALL_BYTES = 1 << 18
_SEGMENTS = 8
"""A run's bounds have room for so many segments at least, so that making room drops an eighth at most."""


class DamagedSegmentError(Exception):
    """The segment is not what was written."""


@dataclass(frozen=True)
class Segment:
    """What the name of a segment says, and where it lies."""

    folder: str
    name: str
    writer: str
    steps: int
    first_step: int
    last_step: int
    total_bytes: int
    checksum: str

    @property
    def path(self) -> str:
        """Its name in the store."""
        return f"{self.folder}/{self.name}"


@dataclass(frozen=True)
class Batch:
    """Entries of one life of a run, in the order in which they were answered."""

    record: RunRecord
    entries: Sequence[Entry]


@dataclass
class Written:
    """What became of some batches; steps by run id.

    `unwritten` are those that the store did not take, because of `error`; entries of a run that is gone are nowhere.
    """

    steps: Counter[str] = field(default_factory=Counter)
    expired: Counter[str] = field(default_factory=Counter)
    too_large: Counter[str] = field(default_factory=Counter)
    unwritten: list[Batch] = field(default_factory=list)
    error: Exception | None = None
    total_bytes: int | None = None


class LedgerStore:
    """Segments of every run, bounded by `settings`, oldest out.

    Several gateways may write at once, each segments of its own; together they may exceed a bound by a segment each.
    Blocking; one thread at a time may write, any number may read.
    """

    def __init__(self, storage: Storage, settings: LedgerConfig) -> None:
        self._storage = storage
        self._runs = RunStore(storage)
        self._settings = settings
        self._writer = uuid.uuid4().hex[:8]
        self._segment_bytes = max(1, min(_SEGMENT_BYTES, settings.max_bytes_per_run // _SEGMENTS))
        self._segment_steps = max(1, settings.max_steps_per_run // _SEGMENTS)

    def write(self, batches: Sequence[Batch]) -> Written:
        """Writes what there is room for, after making room. Does not raise where the store fails, but says so."""
        written = Written()
        try:
            shelf = _Shelf(self._storage, self._settings, written)
        except (PreceptorError, OSError) as error:
            written.error, written.unwritten = error, list(batches)
            return written
        for batch in batches:
            left = list(batch.entries)
            try:
                for part in self._parts(batch.entries):
                    self._write(Batch(batch.record, part), shelf)
                    del left[: len(part)]
            except FileNotFoundError:
                continue  # the run was deleted, and its ledger with it
            except (PreceptorError, OSError) as error:
                written.error = error
                written.unwritten.append(Batch(batch.record, left))
        written.total_bytes = shelf.total_bytes
        return written

    def segments(self, run_id: str) -> list[Segment]:
        """Returns what is kept of a run, oldest first."""
        folder = self._storage.find_versions(run_id, _ROLE)
        return [] if folder is None else _parsed(folder, self._storage.names(folder))

    def read(self, segment: Segment) -> bytes:
        """Returns a segment: a Parquet file.

        Raises:
            FileNotFoundError: it was dropped, or replaced by a longer one.
            DamagedSegmentError: its checksum is wrong.
        """
        content = self._storage.read_once(segment.path)
        if _checksum(content) != segment.checksum:
            raise DamagedSegmentError(segment.path)
        return content

    def _parts(self, entries: Sequence[Entry]) -> Iterator[list[Entry]]:
        part: list[Entry] = []
        part_bytes = 0
        for entry in entries:
            if part and (len(part) == self._segment_steps or part_bytes + entry.total_bytes > self._segment_bytes):
                yield part
                part, part_bytes = [], 0
            part.append(entry)
            part_bytes += entry.total_bytes
        if part:
            yield part

    def _write(self, batch: Batch, shelf: _Shelf) -> None:
        record, run_id = batch.record, batch.record.spec.run_id
        self._require_life(record)
        folder = self._storage.open_versions(run_id, _ROLE)
        table, tail = to_table(record, batch.entries), self._tail(shelf.segments[run_id], batch.entries)
        if tail is not None:
            # Many small segments would be slow to list; a small one is replaced until it is large.
            with suppress(DamagedSegmentError, FileNotFoundError):
                table = pa.concat_tables([from_parquet(self.read(tail)), table])
        content = to_parquet(table)
        if len(content) > self._settings.max_bytes_per_run or len(content) > self._settings.max_bytes:
            shelf.written.too_large[run_id] += len(batch.entries)
            return
        replaced = tail if len(table) > len(batch.entries) else None
        shelf.make_room(run_id, len(content), len(table), replaced)
        segment = _segment(folder, self._writer, table, content)
        with disk_errors():
            self._storage.create(segment.path, content)
        try:
            self._require_life(record)
        except FileNotFoundError:
            with suppress(FileNotFoundError):
                self._storage.remove(segment.path)
            raise
        shelf.segments[run_id].append(segment)
        if replaced is not None:
            shelf.remove(run_id, replaced)
        shelf.written.steps[run_id] += len(batch.entries)

    def _tail(self, segments: Sequence[Segment], entries: Sequence[Entry]) -> Segment | None:
        """Returns the last segment of this writer, where it is small and `entries` fit into it."""
        own = [segment for segment in segments if segment.writer == self._writer]
        if not own or own[-1].total_bytes >= _SMALL_BYTES or own[-1].steps + len(entries) > self._segment_steps:
            return None
        new_bytes = sum(entry.total_bytes for entry in entries)
        return own[-1] if own[-1].total_bytes + new_bytes <= self._segment_bytes else None

    def _require_life(self, record: RunRecord) -> None:
        if not self._runs.holds(record):
            raise FileNotFoundError(record.spec.run_id)


class _Shelf:
    """Every segment, as listed once and changed since by one writer."""

    def __init__(self, storage: Storage, settings: LedgerConfig, written: Written) -> None:
        self._storage = storage
        self._settings = settings
        self.written = written
        self.segments: defaultdict[str, list[Segment]] = defaultdict(list)
        for folder, versions in storage.all_versions([_ROLE]):
            self.segments[versions.run_id] = _parsed(folder, versions.names)

    @property
    def total_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(segment.total_bytes for segments in self.segments.values() for segment in segments)

    def make_room(self, run_id: str, new_bytes: int, new_steps: int, replaced: Segment | None) -> None:
        """Removes the oldest segments until a new one, which stands also for `replaced`, fits into every bound."""
        settings = self._settings
        while kept := [segment for segment in self.segments[run_id] if segment is not replaced]:
            if (
                sum(segment.total_bytes for segment in kept) + new_bytes <= settings.max_bytes_per_run
                and sum(segment.steps for segment in kept) + new_steps <= settings.max_steps_per_run
            ):
                break
            self._expire(run_id, kept[0])
        while others := [
            (segment.name, of, segment)
            for of, segments in self.segments.items()
            for segment in segments
            if segment is not replaced
        ]:
            if sum(segment.total_bytes for _, _, segment in others) + new_bytes <= settings.max_bytes:
                break
            _, of, oldest = min(others, key=lambda one: one[:2])
            self._expire(of, oldest)

    def remove(self, run_id: str, segment: Segment) -> None:
        """Removes a segment."""
        with suppress(FileNotFoundError):  # another gateway was faster, or the run is gone
            self._storage.remove(segment.path)
        self.segments[run_id].remove(segment)

    def _expire(self, run_id: str, segment: Segment) -> None:
        self.remove(run_id, segment)
        self.written.expired[run_id] += segment.steps


def _segment(folder: str, writer: str, table: pa.Table, content: bytes) -> Segment:
    began_us = table["time"][0].value
    steps = table["step"].to_numpy()
    first, last, checksum = int(steps.min()), int(steps.max()), _checksum(content)
    name = f"{began_us:017d}-{writer}-{len(steps):07d}-{first}-{last}-{len(content)}-{checksum}.parquet"
    return Segment(folder, name, writer, len(steps), first, last, len(content), checksum)


def _parsed(folder: str, names: Sequence[str]) -> list[Segment]:
    """Returns the segments among `names`, oldest first."""
    found = [match for name in sorted(names) if (match := _NAME.fullmatch(name))]
    return [
        Segment(folder, match[0], match[2], int(match[3]), int(match[4]), int(match[5]), int(match[6]), match[7])
        for match in found
    ]


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
