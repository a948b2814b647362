"""`Ledger`: takes what was answered, and writes it in the background. Called by the gateway."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from preceptor_service.config import LedgerConfig
from preceptor_service.ledger.entries import Entry
from preceptor_service.ledger.ledger_store import Batch, LedgerStore, Written
from preceptor_service.metrics import GatewayMetrics
from preceptor_service.run_store import RunRecord

_STOP_S = 20.0
_PARTS = 4
"""A fourth of the buffer is written at a time, and before its time where it is taken."""

logger = logging.getLogger(__name__)


class _Kept(NamedTuple):
    record: RunRecord
    entry: Entry


class Ledger:
    """The ledgers of all runs, as one gateway writes them. Lives on one event loop; owns up to three tasks.

    Entries wait in memory, at most `buffer_bytes` of them, until they are written: every `flush_s`, or sooner where
    they are many. Whatever the store does, `keep` returns at once: beyond the bound the oldest that wait, and are not
    being written, are given up and counted.
    """

    def __init__(self, store: LedgerStore, settings: LedgerConfig, metrics: GatewayMetrics) -> None:
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._waiting: deque[_Kept] = deque()
        self._waiting_bytes = 0
        self._writing_bytes = 0
        self._lives: dict[str, float] = {}
        self._lock = asyncio.Lock()
        self._awake = asyncio.Event()
        self._is_stopping = False
        self._fails = False
        self._task: asyncio.Task[None] | None = None
        self._next_flush: asyncio.Task[None] | None = None
        self._flushes: set[asyncio.Task[None]] = set()
        metrics.ledger_limit_bytes.set(settings.max_bytes)
        metrics.ledger_buffer_bytes.set_function(lambda: self._waiting_bytes + self._writing_bytes)

    def start(self) -> None:
        """Begins to write now and then."""
        self._task = asyncio.create_task(self._write_now_and_then())

    async def stop(self) -> None:
        """Writes what waits, as far as that succeeds in 20 s, and ends."""
        if self._task is None:
            return
        self._is_stopping = True
        self._awake.set()
        await asyncio.wait({self._task}, timeout=_STOP_S)
        ending = {self._task, *self._flushes}
        for task in ending:
            task.cancel()
        await asyncio.wait(ending)
        if self._waiting or self._writing_bytes:
            logger.warning("the ledger lacks %d answers that could not be written before the end", len(self._waiting))

    def keep(self, record: RunRecord, entry: Entry) -> None:
        """Takes what a super-batch of a run was drawn from. Neither blocks nor fails."""
        self._lives[record.spec.run_id] = record.create_time_s
        self._waiting.append(_Kept(record, entry))
        self._waiting_bytes += entry.total_bytes
        self._give_up_oldest()
        # Not where the store fails: then the buffer stays full, and the next try comes in its time.
        if self._waiting_bytes * _PARTS >= self._settings.buffer_bytes and not self._fails:
            self._awake.set()

    def forget(self, run_id: str) -> None:
        """Gives up what waits of a run that is gone, uncounted."""
        self._lives.pop(run_id, None)
        self._waiting = deque(kept for kept in self._waiting if kept.record.spec.run_id != run_id)
        self._waiting_bytes = sum(kept.entry.total_bytes for kept in self._waiting)

    async def flush(self, timeout_s: float) -> None:
        """Writes what waits now, and returns after `timeout_s` at the latest; it is done later then. Never fails.

        However many ask while the store hangs, they share the flush that comes next.
        """
        if self._next_flush is None:
            self._next_flush = asyncio.create_task(self._flush_next())
            self._flushes.add(self._next_flush)
            self._next_flush.add_done_callback(self._flushes.discard)
        await asyncio.wait({self._next_flush}, timeout=timeout_s)

    async def _flush_next(self) -> None:
        async with self._lock:
            self._next_flush = None  # what is kept from now on is for another one
            await self._write_what_waits()

    async def _write_what_waits(self) -> None:
        """Writes what waits now. Where the store does not take it, it goes on waiting."""
        due = len(self._waiting)
        try:
            while due > 0 and self._waiting:
                taken = self._taken(due)
                due -= len(taken)
                if not await self._write(taken):
                    return
        except Exception:
            logger.exception("the ledger could not be written; it is tried again in %g s", self._settings.flush_s)
            self._fails = True

    def _taken(self, most: int) -> list[_Kept]:
        """Returns what waits longest, a fourth of the buffer: the rest can give way to what comes meanwhile."""
        taken: list[_Kept] = []
        while self._waiting and len(taken) < most and self._writing_bytes * _PARTS <= self._settings.buffer_bytes:
            taken.append(self._waiting.popleft())
            self._waiting_bytes -= taken[-1].entry.total_bytes
            self._writing_bytes += taken[-1].entry.total_bytes
        return taken

    async def _write(self, taken: Sequence[_Kept]) -> bool:
        batches = _by_life(taken)
        written = Written(unwritten=batches)
        try:
            written = await asyncio.to_thread(self._store.write, batches)
        finally:
            self._writing_bytes = 0
            self._put_back(written.unwritten)
        self._tell(written)
        return written.error is None

    async def _write_now_and_then(self) -> None:
        while not self._is_stopping:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._awake.wait(), self._settings.flush_s)
            self._awake.clear()
            async with self._lock:
                await self._write_what_waits()
        async with self._lock:
            await self._write_what_waits()

    def _put_back(self, batches: Sequence[Batch]) -> None:
        for batch in reversed(batches):
            if self._is_alive(batch.record):
                self._waiting.extendleft(_Kept(batch.record, entry) for entry in reversed(batch.entries))
                self._waiting_bytes += sum(entry.total_bytes for entry in batch.entries)
        self._give_up_oldest()

    def _give_up_oldest(self) -> None:
        while self._waiting and self._waiting_bytes + self._writing_bytes > self._settings.buffer_bytes:
            record, entry = self._waiting.popleft()
            self._waiting_bytes -= entry.total_bytes
            self._metrics.ledger_lost_steps.labels(record.spec.run_id, "buffer").inc()

    def _tell(self, written: Written) -> None:
        metrics = self._metrics
        for run_id in self._lives:  # a run that is gone leaves no series
            metrics.ledger_steps.labels(run_id).inc(written.steps[run_id])
            metrics.ledger_expired_steps.labels(run_id).inc(written.expired[run_id])
            metrics.ledger_lost_steps.labels(run_id, "too_large").inc(written.too_large[run_id])
        if written.total_bytes is not None:
            metrics.ledger_bytes.set(written.total_bytes)
        if written.error is not None and not self._fails:
            logger.warning(
                "the store does not take the ledger; selection goes on, and up to %d bytes of it wait in memory: %s",
                self._settings.buffer_bytes,
                written.error,
            )
        self._fails = written.error is not None

    def _is_alive(self, record: RunRecord) -> bool:
        return self._lives.get(record.spec.run_id) == record.create_time_s


def _by_life(waiting: Iterable[_Kept]) -> list[Batch]:
    found: dict[tuple[str, float], list[_Kept]] = {}
    for kept in waiting:
        found.setdefault((kept.record.spec.run_id, kept.record.create_time_s), []).append(kept)
    return [Batch(life[0].record, [kept.entry for kept in life]) for life in found.values()]
