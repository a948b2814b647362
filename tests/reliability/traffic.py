"""Trainers that select without pause while a proof does something bad, and the record of every step of theirs.

`Traffic` drives trainers of this process, one thread each; trainers in processes of their own write the same `Step`s
as JSON lines (`append`), which `read` takes in. Times are of `time.monotonic`, which all processes of a machine share.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from numpy.typing import NDArray

from preceptor import Selection
from preceptor.errors import PreceptorError

Select = Callable[[int], Selection]
"""What a trainer does at a step."""

_JOIN_S = 120.0


@dataclass(frozen=True)
class Step:
    """What came of one `select`.

    Attributes:
        trainer, step: whose, and which.
        began_s, ended_s: when it was asked and answered.
        indices: digest of the answer; None where there was none.
        version, learner_step: weights behind it; None where it needs none.
        is_fallback: as the answer says.
        error: class and text of what was raised instead; None where it was answered.
    """

    trainer: int
    step: int
    began_s: float
    ended_s: float
    indices: str | None
    version: int | None = None
    learner_step: int | None = None
    is_fallback: bool = False
    error: str | None = None

    @property
    def latency_s(self) -> float:
        """Seconds from question to answer."""
        return self.ended_s - self.began_s


@dataclass
class Mark:
    """A time in which something was done to the service."""

    name: str
    began_s: float
    ended_s: float

    def touches(self, began_s: float, ended_s: float, margin_s: float) -> bool:
        """Whether that time and this one, longer by `margin_s` at its end, have a moment in common."""
        return began_s <= self.ended_s + margin_s and ended_s >= self.began_s


@dataclass
class Record:
    """All steps, and what was done meanwhile. Not safe to read while a `Traffic` runs; its `so_far` is."""

    steps: list[Step] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    until_s: float = 0.0

    def around(self, mark: Mark, margin_s: float = 0.0) -> list[Step]:
        """The steps of which some part lies in `mark`, or up to `margin_s` after it."""
        return [step for step in self.steps if mark.touches(step.began_s, step.ended_s, margin_s)]

    def errors(self, mark: Mark | None = None, margin_s: float = 0.0) -> list[Step]:
        """The steps that raised: all, or those around a mark."""
        steps = self.steps if mark is None else self.around(mark, margin_s)
        return [step for step in steps if step.error is not None]

    def longest_gap_s(self, mark: Mark, margin_s: float = 0.0) -> float:
        """The longest time around `mark` in which some trainer got no answer; also where it never got another one."""
        ends: dict[int, list[float]] = defaultdict(list)
        for step in self.steps:
            ends[step.trainer] += [step.ended_s] if step.error is None else []
        longest = 0.0
        for times in ends.values():
            times = [*sorted(times), max(self.until_s, mark.ended_s)]
            gaps = (
                after - before for before, after in itertools.pairwise(times) if mark.touches(before, after, margin_s)
            )
            longest = max(longest, *gaps, 0.0)
        return longest

    def check_undisturbed(self, mark: Mark, longest_gap_s: float, margin_s: float = 5.0) -> None:
        """Raises `AssertionError` where a step around `mark` raised, or a trainer waited longer than that."""
        errors = self.errors(mark, margin_s)
        if errors:
            raise AssertionError(f"{len(errors)} steps failed around {mark.name!r}; the first: {errors[0]}")
        gap_s = self.longest_gap_s(mark, margin_s)
        if gap_s > longest_gap_s:
            raise AssertionError(f"around {mark.name!r} a trainer waited {gap_s:.2f} s, allowed are {longest_gap_s:g}")


class Traffic:
    """Trainers of this process, each in a thread that selects step after step from entering to leaving.

    A step that raises a `PreceptorError` is recorded, and the trainer goes on with the next one; anything else ends
    that trainer, and is raised on leaving.

    Args:
        trainers: what each does at a step.
        first_step: of every trainer.
    """

    def __init__(self, trainers: Sequence[Select], first_step: int = 0) -> None:
        self._record = Record()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._counts = [0] * len(trainers)
        self._threads = [
            threading.Thread(target=self._drive, args=(number, select, first_step), name=f"trainer-{number}")
            for number, select in enumerate(trainers)
        ]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_JOIN_S)
        if error is None and self._failure is not None:
            raise self._failure
        if error is None and any(thread.is_alive() for thread in self._threads):
            raise AssertionError(f"a trainer is still at its step {_JOIN_S:g} s after it was told to stop")

    @contextmanager
    def mark(self, name: str) -> Iterator[Mark]:
        """Names what is done in the block."""
        now = time.monotonic()
        mark = Mark(name, now, float("inf"))
        with self._changed:
            self._record.marks.append(mark)
        try:
            yield mark
        finally:
            mark.ended_s = time.monotonic()

    def so_far(self) -> Record:
        """What happened up to now."""
        with self._changed:
            return Record(list(self._record.steps), list(self._record.marks), time.monotonic())

    def wait_for_steps(self, count: int, timeout_s: float = 60.0) -> None:
        """Returns once every trainer has ended `count` more steps than now.

        Raises:
            AssertionError: within `timeout_s` some did not.
        """
        with self._changed:
            wanted = [done + count for done in self._counts]
            self._changed.wait_for(lambda: self._failure is not None or self._has_done(wanted), timeout_s)
            if not self._has_done(wanted):
                raise AssertionError(f"within {timeout_s:g} s not every trainer took {count} steps: {self._failure!r}")

    def _has_done(self, wanted: list[int]) -> bool:
        return all(done >= least for done, least in zip(self._counts, wanted, strict=True))

    def _drive(self, trainer: int, select: Select, first_step: int) -> None:
        try:
            for step in itertools.count(first_step):
                if self._stop.is_set():
                    return
                done = timed(trainer, step, select)
                with self._changed:
                    self._record.steps.append(done)
                    self._counts[trainer] += 1
                    self._changed.notify_all()
        except BaseException as failure:  # noqa: BLE001 - raised on leaving
            with self._changed:
                self._failure = failure
                self._changed.notify_all()


def timed(trainer: int, step: int, select: Select) -> Step:
    """Takes one step and tells what came of it."""
    began = time.monotonic()
    try:
        selection = select(step)
    except PreceptorError as error:
        told = f"{type(error).__name__}: {error}"
        return Step(trainer, step, began, time.monotonic(), None, error=told)
    return answered(trainer, step, began, selection)


def answered(trainer: int, step: int, began_s: float, selection: Selection) -> Step:
    """The record of a selection that came just now."""
    return Step(
        trainer,
        step,
        began_s,
        time.monotonic(),
        digest_of(selection.indices),
        selection.learner_version,
        selection.learner_step,
        selection.is_fallback,
    )


def digest_of(indices: NDArray[np.int64] | Sequence[int]) -> str:
    """Names indices, in their order."""
    return hashlib.sha256(np.asarray(indices, np.int64).tobytes()).hexdigest()[:16]


def append(file: IO[str], step: Step) -> None:
    """Writes one step so that it outlives a kill of this process."""
    file.write(json.dumps(asdict(step)) + "\n")
    file.flush()


def read(paths: Iterable[Path]) -> list[Step]:
    """Reads what `append` wrote; a line that a kill cut off is left out."""
    steps = []
    for path in paths:
        for line in path.read_text().splitlines():
            try:
                steps.append(Step(**json.loads(line)))
            except ValueError:
                continue
    return sorted(steps, key=lambda step: step.ended_s)
