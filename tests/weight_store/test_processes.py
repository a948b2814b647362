"""Several processes on one store: races and sudden deaths."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from preceptor_service.weight_store import UPLOAD_GRACE_S, WeightStore
from tests.weight_store.pushing import create_run, push, store_with_runs

ROUNDS = 10


@contextmanager
def another(job: str, store: Path, data: str) -> Iterator[subprocess.Popen[str]]:
    """A process that does `job` of `pushing.py`."""
    command = [sys.executable, "-m", "tests.weight_store.pushing", job, str(store), data]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_of_racing_pushes_exactly_one_wins(tmp_path: Path) -> None:
    for number in range(ROUNDS):
        create_run(tmp_path, f"run-{number}")
    with ExitStack() as stack:
        racers = [stack.enter_context(another("race", tmp_path, f"weights {number}")) for number in range(3)]
        for number in range(ROUNDS):
            for racer in racers:
                say(racer, f"run-{number}")
            assert [heard(racer) for racer in racers] == ["ready"] * 3
            for racer in racers:
                say(racer, "go")
            assert Counter(heard(racer) for racer in racers) == {"1": 1, "PushConflictError": 2}

    store = WeightStore(tmp_path, keep_versions=2, max_bytes=1000)
    for number in range(ROUNDS):
        (winner,) = store.versions(f"run-{number}", "learner")
        assert store.verify(winner.digest).read_bytes().startswith(b"weights ")


def test_a_process_killed_while_it_stages_leaves_nothing_that_counts(tmp_path: Path) -> None:
    store = store_with_runs(tmp_path, keep_versions=2, grace_s=0)
    head = push(store, b"one")
    with another("stall", tmp_path, "half") as process:
        assert heard(process) == "ready"
        process.kill()
        process.wait(10)
    (leftover,) = (tmp_path / "staging").iterdir()

    assert store.head("run", "learner") == head
    assert push(store, b"two", step=1).version == 2
    long_ago = time.time() - UPLOAD_GRACE_S - 1
    os.utime(leftover, (long_ago, long_ago))
    store.collect()
    assert not leftover.exists()
    assert store.verify(head.digest).read_bytes() == b"one"
