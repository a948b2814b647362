"""Proof `seeded-bugs`: the tests notice mistakes. Each of `bugs.BUGS` is made in a copy, where its test has to fail.

The checkout is never touched, and what a test starts as a process comes from the copy too. A bug that changes nothing
passes its test and counts as uncaught. So does one that breaks a fixture, or whose test does not end: only what fails
inside the test itself says that the test looked.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copy2, copytree
from typing import Any
from xml.etree import ElementTree as ET

from rich.progress import track

from benchmarks.machine import ROOT
from benchmarks.results import Figure
from benchmarks.suite import Measured
from tests.reliability.bugs import BUGS, Bug

COPIED = ("services", "clients", "tests", "benchmarks", "pyproject.toml")
SHORT = (
    "takes NaN for a score",
    "keeps the bytes of a waiter that was cancelled",
    "lets two pushes win",
)
_TIMEOUT_S = 600.0
_REPORT = "report.xml"


@dataclass(frozen=True)
class Outcome:
    """What came of some tests: how many passed, failed in themselves, and did neither; `said` is pytest's output."""

    passed: int
    failed: int
    other: int
    seconds: float
    said: str

    @property
    def is_passed(self) -> bool:
        """Whether all of them passed, and there was one."""
        return self.passed > 0 and self.failed == self.other == 0


def run(short: bool) -> Measured:
    """Returns the figures, and what became of each bug."""
    bugs = [bug for bug in BUGS if bug.name in SHORT or not short]
    without = outcome_of([bug.test for bug in bugs], [])
    if not without.is_passed:
        raise RuntimeError(f"the tests fail without a bug, so they say nothing about one:\n{without.said[-4000:]}")
    caught, raw = 0, []
    for bug in track(bugs, "bugs"):
        outcome = outcome_of([bug.test], [bug])
        caught += outcome.failed > 0
        raw.append({"bug": bug.name, "failed": outcome.failed, "seconds": round(outcome.seconds, 1)})
    figures = [
        Figure("bugs that their test catches", caught, "", limit=len(SHORT) if short else 15, sense="at least"),
        Figure("bugs that it does not", len(bugs) - caught, "", limit=0),
        Figure("promises that they break", len({bug.promise for bug in bugs}), ""),
        Figure("tests that pass without a bug", without.passed, ""),
    ]
    return figures, {"bugs": raw}


def outcome_of(tests: Sequence[str], bugs: Sequence[Bug]) -> Outcome:
    """Runs tests on a copy of the code with these bugs.

    Raises:
        ValueError: what a bug changes is not there exactly once.
    """
    with tempfile.TemporaryDirectory(prefix="preceptor-bugs-") as folder:
        copy = Path(folder)
        for name in COPIED:
            (copytree if (ROOT / name).is_dir() else copy2)(ROOT / name, copy / name)
        for bug in bugs:
            plant(bug, copy)
        began = time.monotonic()
        said = _pytest(tests, copy)
        return _outcome(copy / _REPORT, time.monotonic() - began, said)


def plant(bug: Bug, root: Path) -> None:
    """Makes the mistake below `root`.

    Raises:
        ValueError: what it changes is not there exactly once.
    """
    file = root / bug.file
    text = file.read_text()
    if (found := text.count(bug.old)) != 1:
        raise ValueError(f"{bug.name!r} changes what is in {bug.file} {found} times, not once: {bug.old!r}")
    file.write_text(text.replace(bug.old, bug.new))
    # What was compiled before is told from what is to be compiled by size and second alone.
    Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)


def _pytest(tests: Sequence[str], copy: Path) -> str:
    path = [str(copy / "clients" / "python"), str(copy / "services"), str(copy)]
    options = ["-q", "-x", "-p", "no:cacheprovider", f"--basetemp={copy / 'made'}", f"--junitxml={copy / _REPORT}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *dict.fromkeys(tests)],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        return process.communicate(timeout=_TIMEOUT_S)[0]
    except subprocess.TimeoutExpired:
        return "it did not end"
    finally:
        process.kill()
        process.wait()


def _outcome(report: Path, seconds: float, said: str) -> Outcome:
    cases: list[Any] = list(ET.parse(report).iter("testcase")) if report.exists() else []
    failed = sum(case.find("failure") is not None for case in cases)
    passed = sum(all(case.find(kind) is None for kind in ("failure", "error", "skipped")) for case in cases)
    return Outcome(passed, failed, len(cases) - passed - failed, seconds, said)
