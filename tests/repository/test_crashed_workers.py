"""`make test` outlives an interpreter that dies, and says so; it does not outlive a test that kills it each time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_CONFTEST = "from tests.crashed_workers import *\n"
_SIZES = [12] * 10 + [4] * 15 + [2] * 15
"""Tests of each file: enough that its worker had done some when it died, and that the rest has small ones."""
_CRASHING = """
import os, pathlib, signal

def test_before():
    pass

def test_that_crashes():
    crashes = pathlib.Path({crashes!r})
    seen = int(crashes.read_text())
    if seen < {limit}:
        crashes.write_text(str(seen + 1))
        os.kill(os.getpid(), signal.SIGKILL)  # leaves no core behind

def test_after():
    pass
"""


def _run(folder: Path, repository: Path, limit: int) -> subprocess.CompletedProcess[str]:
    crashes = folder / "crashes"
    crashes.write_text("0")
    (folder / "conftest.py").write_text(_CONFTEST)
    for number, size in enumerate(_SIZES):
        good = "".join(f"def test_{each}():\n    pass\n" for each in range(size))
        (folder / f"test_good_{number}.py").write_text(good)
    (folder / "test_crashing.py").write_text(_CRASHING.format(crashes=str(crashes), limit=limit))
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "--max-worker-restart=3"]
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(folder), str(folder)],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.slow
def test_tests_of_a_worker_that_died_are_run_again(tmp_path: Path, repository: Path) -> None:
    ran = _run(tmp_path, repository, limit=1)
    assert ran.returncode == 0, ran.stdout
    assert f"{sum(_SIZES) + 3} passed, 1 rerun" in ran.stdout
    assert "RUN AGAIN test_crashing.py::test_that_crashes: the interpreter of its worker died" in ran.stdout


@pytest.mark.slow
def test_a_test_that_ends_its_worker_each_time_has_failed(tmp_path: Path, repository: Path) -> None:
    ran = _run(tmp_path, repository, limit=99)
    assert ran.returncode == 1, ran.stdout
    assert "crashed while running 'test_crashing.py::test_that_crashes'" in ran.stdout
    assert "3 failed" in ran.stdout  # and then no more workers are started
