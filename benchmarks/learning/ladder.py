"""`Results`: finished runs, a JSON line each, keyed by the digest of their settings, so that a second start goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.learning.claims import claimed
from benchmarks.learning.settings import Training, digest, plain


class Results:
    """A file of finished runs. Several processes may add to it.

    A line is written in one piece. What a kill cut off is no run: the next one that is added ends it first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._runs: dict[str, dict[str, Any]] = {}
        self.read()

    def read(self) -> None:
        """Reads what other processes added."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        runs = [run for run in map(_parsed, lines) if run is not None]
        self._runs = {run["digest"]: run for run in runs}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._runs.values())

    def find(self, settings: Training) -> dict[str, Any] | None:
        """Returns what came of a run, or None where it was not done."""
        return self._runs.get(digest(settings))

    def add(self, settings: Training, outcome: dict[str, Any], here: dict[str, Any]) -> None:
        """Appends a finished run and what it was made on, durably."""
        run = {"digest": digest(settings), "settings": plain(settings), **outcome, "made_on": here}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+") as file:
            file.seek(max(0, file.tell() - 1))
            begin = "" if file.read(1) in ("", "\n") else "\n"
            file.write(f"{begin}{json.dumps(run)}\n")
            file.flush()
            os.fsync(file.fileno())
        self._runs[run["digest"]] = run


def made_on() -> dict[str, Any]:
    """Returns the commit, the day and the hardware of now."""
    return {
        "commit": machine.commit(),
        "at": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": machine.hardware(),
    }


def missing(wanted: Iterable[Training], results: Results) -> list[Training]:
    """Returns the runs that are not done, each once, in the order wanted."""
    return list({digest(settings): settings for settings in wanted if results.find(settings) is None}.values())


def climb(
    wanted: Iterable[Training],
    results: Results,
    train: Callable[[Training], dict[str, Any]],
    claims: Path,
    watch: Callable[[int, int, Training, dict[str, Any] | None], None],
) -> None:
    """Does what is missing, one run after the other, and leaves to other processes what they have begun.

    A run that is broken off leaves nothing. Several processes share the work where all have the same `claims`.

    Args:
        wanted: the runs.
        results: where finished ones are, and go to.
        train: does one.
        claims: directory of what is under way.
        watch: told number, count and settings of each run before it starts, with None, and after it, with its outcome.
    """
    left, here = missing(wanted, results), made_on()
    for number, settings in enumerate(left, start=1):
        with claimed(claims / f"{digest(settings)}.lock", waits=False) as is_ours:
            results.read()
            if not is_ours or results.find(settings) is not None:
                continue
            watch(number, len(left), settings, None)
            outcome = train(settings)
            results.add(settings, outcome, here)
            watch(number, len(left), settings, outcome)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        run: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return run
