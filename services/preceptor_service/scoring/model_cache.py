"""`ModelCache`: the models that one scorer holds, bounded in bytes. Called by the engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from preceptor.errors import DeadlineExceededError, OverloadedError, TooLargeError
from preceptor_service.scoring.pool import ModelRef

M = TypeVar("M")

LEARNERS_PER_RUN = 2
"""The version in use and the one that takes over."""


@dataclass(frozen=True)
class Want:
    """One model to lease. `learner_of` is the run whose learner it is; None for a reference."""

    ref: ModelRef
    learner_of: str | None


@dataclass(eq=False)
class _Entry(Generic[M]):
    total_bytes: int
    model: Future[M] = field(default_factory=Future)
    leases: int = 0
    used_at: int = 0
    is_reference: bool = False
    learner_used_at: dict[str, int] = field(default_factory=dict)

    @property
    def is_wanted(self) -> bool:
        return self.is_reference or bool(self.learner_used_at)


class ModelCache(Generic[M]):
    """Loads models on demand and drops the least recently used; never one that is leased.

    Of each run's learners the two that were asked for last are kept, older ones go as soon as nobody
    leases them. Models are known by content, so runs with the same reference share it. Two threads that want the
    same model load it once; a load holds up only those who want that model.

    Args:
        max_bytes: bound on the models held, those being loaded included.
        measure: bytes that a model will take.
        load: builds a model; called outside the lock.
        timeout_s: longest wait for room, or for another thread's load.
    """

    def __init__(
        self,
        max_bytes: int,
        measure: Callable[[ModelRef], int],
        load: Callable[[ModelRef], M],
        timeout_s: float = 60.0,
    ) -> None:
        self._max_bytes = max_bytes
        self._measure = measure
        self._load = load
        self._timeout_s = timeout_s
        self._entries: dict[ModelRef, _Entry[M]] = {}
        self._clock = 0
        self._changed = threading.Condition()  # guards the two above

    def held(self) -> tuple[ModelRef, ...]:
        """Returns what is loaded now, least recently used first."""
        with self._changed:
            loaded = [item for item in self._entries.items() if item[1].model.done()]
            return tuple(ref for ref, _ in sorted(loaded, key=lambda item: item[1].used_at))

    @contextmanager
    def lease(self, wants: Sequence[Want]) -> Iterator[list[M]]:
        """Yields the wanted models, in order; they stay for the length of the `with` block.

        Room for all of them is taken at once, so that two callers never wait for each other.

        Raises:
            TooLargeError: together they take more than the cache may hold.
            OverloadedError: no room came free in time, since others lease too much.
            DeadlineExceededError: another thread's load of one of them took too long.
        """
        sizes = {want.ref: self._measure(want.ref) for want in wants}
        if sum(sizes.values()) > self._max_bytes:
            raise TooLargeError(
                f"models of {sum(sizes.values())} bytes are needed at once, a scorer may hold {self._max_bytes} "
                "(scorer.model_bytes); score with a smaller model or raise the limit"
            )
        entries, to_load = self._reserve(wants, sizes)
        try:
            self._fill({ref: entries[ref] for ref in to_load})
            yield [self._filled(entries[want.ref]) for want in wants]
        finally:
            self._release(entries)

    def _reserve(
        self, wants: Sequence[Want], sizes: dict[ModelRef, int]
    ) -> tuple[dict[ModelRef, _Entry[M]], list[ModelRef]]:
        deadline = time.monotonic() + self._timeout_s
        with self._changed:
            while not self._has_room(sizes):
                if not self._changed.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    raise OverloadedError(
                        f"no room for models of {sum(sizes.values())} bytes within {self._timeout_s} s; "
                        f"others in use fill the {self._max_bytes} bytes (scorer.model_bytes)"
                    )
            to_load = [ref for ref in sizes if ref not in self._entries]
            entries = {ref: self._entries.setdefault(ref, _Entry(size)) for ref, size in sizes.items()}
            self._clock += 1
            for entry in entries.values():
                entry.leases += 1
                entry.used_at = self._clock
            for want in wants:
                entry = entries[want.ref]
                if want.learner_of is None:
                    entry.is_reference = True
                else:
                    entry.learner_used_at[want.learner_of] = self._clock
            for run_id in {want.learner_of for want in wants if want.learner_of is not None}:
                self._retire_learners(run_id)
            return entries, to_load

    def _has_room(self, sizes: dict[ModelRef, int]) -> bool:
        """Drops idle models, least recently used first, until `sizes` fit; False where they cannot yet."""
        missing = sum(size for ref, size in sizes.items() if ref not in self._entries)
        idle = sorted(
            (item for item in self._entries.items() if not item[1].leases and item[0] not in sizes),
            key=lambda item: item[1].used_at,
        )
        held = sum(entry.total_bytes for entry in self._entries.values())
        if held + missing - sum(entry.total_bytes for _, entry in idle) > self._max_bytes:
            return False
        for ref, entry in idle:
            if held + missing <= self._max_bytes:
                break
            del self._entries[ref]
            held -= entry.total_bytes
        return True

    def _retire_learners(self, run_id: str) -> None:
        learners = [entry for entry in self._entries.values() if run_id in entry.learner_used_at]
        for entry in sorted(learners, key=lambda entry: entry.learner_used_at[run_id])[:-LEARNERS_PER_RUN]:
            del entry.learner_used_at[run_id]
        self._drop_unwanted()

    def _drop_unwanted(self) -> None:
        for ref in [ref for ref, entry in self._entries.items() if not entry.leases and not entry.is_wanted]:
            del self._entries[ref]

    def _fill(self, entries: dict[ModelRef, _Entry[M]]) -> None:
        try:
            for ref, entry in entries.items():
                entry.model.set_result(self._load(ref))
        except BaseException as error:
            with self._changed:
                for ref, entry in entries.items():
                    if not entry.model.done():  # also those that this thread did not come to
                        del self._entries[ref]
                        entry.model.set_exception(error)
            raise

    def _filled(self, entry: _Entry[M]) -> M:
        try:
            return entry.model.result(self._timeout_s)
        except TimeoutError as error:
            raise DeadlineExceededError(f"another load of these weights takes more than {self._timeout_s} s") from error

    def _release(self, entries: dict[ModelRef, _Entry[M]]) -> None:
        with self._changed:
            for entry in entries.values():
                entry.leases -= 1
            self._drop_unwanted()
            self._changed.notify_all()
