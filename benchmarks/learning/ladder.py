"""`Results`: finished runs, a JSON line each, keyed by the digest of their settings, so that a second start goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.learning.settings import Training, digest, plain


class Results:
    """A file of finished runs. One process at a time writes it.

    A line is written whole or, where a kill cuts it off, is dropped by the next start: its run is done again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._runs: dict[str, dict[str, Any]] = {}
        if path.exists():
            lines = path.read_text().split("\n")
            if lines[-1]:  # cut off
                path.write_text("".join(f"{line}\n" for line in lines[:-1]))
            self._runs = {run["digest"]: run for run in map(json.loads, filter(None, lines[:-1]))}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._runs.values())

    def find(self, settings: Training) -> dict[str, Any] | None:
        """Returns what came of a run, or None where it was not done."""
        return self._runs.get(digest(settings))

    def add(self, settings: Training, outcome: dict[str, Any]) -> None:
        """Appends a finished run, durably."""
        run = {"digest": digest(settings), "settings": plain(settings), **outcome, "made_on": made_on()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(run) + "\n")
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
    watch: Callable[[int, int, Training, dict[str, Any] | None], None],
) -> None:
    """Does what is missing, one run after the other. A run that is broken off leaves nothing.

    Args:
        wanted: the runs.
        results: where finished ones are, and go to.
        train: does one.
        watch: told number, count and settings of each run before it starts, with None, and after it, with its outcome.
    """
    left = missing(wanted, results)
    for number, settings in enumerate(left, start=1):
        watch(number, len(left), settings, None)
        outcome = train(settings)
        results.add(settings, outcome)
        watch(number, len(left), settings, outcome)
