"""Several processes on one store: races and sudden deaths."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from preceptor_service.weight_collection import UPLOAD_GRACE_S
from preceptor_service.weight_store import WeightStore
from tests.stores import Place
from tests.weight_store.pushing import create_run, push, store_with_runs

ROUNDS = 10


@contextmanager
def another(job: str, place: Place, data: str) -> Iterator[subprocess.Popen[str]]:
    """A process that does `job` of `pushing.py`."""
    command = [sys.executable, "-m", "tests.weight_store.pushing", job, place.settings.model_dump_json(), data]
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


def test_of_racing_pushes_exactly_one_wins(place: Place) -> None:
    for number in range(ROUNDS):
        create_run(place.open(), f"run-{number}")
    with ExitStack() as stack:
        racers = [stack.enter_context(another("race", place, f"weights {number}")) for number in range(3)]
        for number in range(ROUNDS):
            for racer in racers:
                say(racer, f"run-{number}")
            assert [heard(racer) for racer in racers] == ["ready"] * 3
            for racer in racers:
                say(racer, "go")
            assert Counter(heard(racer) for racer in racers) == {"1": 1, "PushConflictError": 2}

    store = WeightStore(place.open(), keep_versions=2, max_bytes=1000)
    for number in range(ROUNDS):
        (winner,) = store.versions(f"run-{number}", "learner")
        assert store.verify(winner.digest).read_bytes().startswith(b"weights ")


def test_a_process_killed_while_it_stages_leaves_nothing_that_counts(place: Place) -> None:
    store = store_with_runs(place.open(), keep_versions=2)
    head = push(store, b"one")
    with another("stall", place, "half") as process:
        assert heard(process) == "ready"
        process.kill()
        process.wait(10)
    (leftover,) = place.open().staging.iterdir()

    assert store.head("run", "learner") == head
    assert push(store, b"two", step=1).version == 2
    place.age(UPLOAD_GRACE_S + 1)
    store.collect()
    assert not leftover.exists()
    assert store.verify(head.digest).read_bytes() == b"one"
