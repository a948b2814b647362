"""Proof `herd`: a gateway with 256 trainers is killed and started again; all of them come back at once.

The trainers are shipped clients, in a few processes, which select and train in a loop. Once the next gateway answers
anybody, everybody has to have an answer, the right one, within the longest pause between two tries of a client.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.machine import ROOT
from benchmarks.results import Figure
from benchmarks.suite import Measured
from preceptor import RunSpec, SelectionClient
from preceptor.channel import LONGEST_BACKOFF_S
from preceptor_service.drawing import Draw, drawn_by_score
from preceptor_service.method_registry import SELECTORS
from tests.reliability.herd_trainers import COUNT, DISTINCT, TIMEOUT_S, digest, run_of, super_batch
from tests.reliability.served import Served, environment, serve, wait_until
from tests.service import digits
from tests.service.conftest import Metrics

TRAINERS, SHORT_TRAINERS = 256, 32
PROCESSES, SHORT_PROCESSES = 4, 1
RESTARTS, SHORT_RESTARTS = 3, 1
UPDATES_PER_S = 64.0
"""Of all trainers together: about half of what two cores select."""
RUNS = 8
DEADLINE_S = 20.0
ROOM = 0.25
"""Share of the trainers whose bodies the gateway has room for; the others wait in front of it."""
CALM_S, SHORT_CALM_S = 10.0, 1.0

_MIB = 1024 * 1024
_POLL_S = 0.02


class Herd:
    """Some trainers, in a process of their own."""

    def __init__(self, target: str, first: int, count: int, update_s: float) -> None:
        numbers = (first, count, RUNS, update_s)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.herd_trainers", target, *map(str, numbers)],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_for_answers(self) -> None:
        """Returns once each trainer has an answer: the first, or one later than `look`; or none for too long."""
        self._said()

    def look(self) -> None:
        """Has `wait_for_answers` wait for later answers than those so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        """Tells the trainers to finish their step; `trainers` then waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def trainers(self) -> dict[str, Any]:
        """What came of them."""
        return self._said()

    def kill(self) -> None:
        """Ends the process, wherever it is."""
        self._process.kill()
        with self._process:
            pass

    def _said(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        alarm = threading.Timer(4 * TIMEOUT_S, self._process.kill)
        alarm.start()
        try:
            line = self._process.stdout.readline()
        finally:
            alarm.cancel()
        if not line:
            raise RuntimeError("trainers ended, or said nothing")
        said: dict[str, Any] = json.loads(line)
        return said


@dataclass
class Peaks:
    """The most that a gateway had to carry."""

    streams: float = 0.0
    body_bytes: float = 0.0
    waiting: float = 0.0
    resident_bytes: float = 0.0


@dataclass
class Restart:
    """When the gateway was killed, when its port was taken again, and what it had to carry afterwards."""

    killed_at: float
    listens_at: float = 0.0
    peaks: Peaks = field(default_factory=Peaks)


def run(short: bool) -> Measured:
    """Returns the figures, and what each restart was like."""
    trainers, processes, restarts = (
        (SHORT_TRAINERS, SHORT_PROCESSES, SHORT_RESTARTS) if short else (TRAINERS, PROCESSES, RESTARTS)
    )
    console = Console()
    body_bytes = int(ROOM * trainers) * _body_bytes()
    gateway: dict[str, Any] = {
        "body_bytes": body_bytes,
        "max_super_batch_bytes": 4 * _body_bytes(),
        "window_bytes": 4 * _body_bytes(),
    }
    with serve(1, pool="in-process", **gateway) as served:
        scores = _ready(served.target)
        with _herds(served.target, trainers, processes) as herds:
            for herd in herds:
                herd.wait_for_answers()
            happened = []
            for number in range(restarts):
                console.print(f"restart {number + 1} of {restarts}, {trainers} trainers …")
                happened.append(_restart(served, herds))
                threading.Event().wait(SHORT_CALM_S if short else CALM_S)
            for herd in herds:
                herd.stop()
            said = [herd.trainers() for herd in herds]
    return _figures(said, happened, scores, body_bytes)


def _figures(
    said: list[dict[str, Any]], happened: list[Restart], scores: list[NDArray[np.float32]], body_bytes: int
) -> Measured:
    trainers = [trainer for each in said for trainer in each["trainers"]]
    errors = [error for trainer in trainers for error in trainer["errors"]]
    answers = sum(len(trainer["answers"]) for trainer in trainers)
    lost = sum(_lost(trainer) for trainer in trainers)
    different = sum(_different(trainer, scores) for trainer in trainers)
    admissions = [_admissions(trainers, restart, happened) for restart in happened]
    never = sum(each.count(None) for each in admissions)
    first_s = [min((late for late in each if late is not None), default=0.0) for each in admissions]
    last_s = [max((late for late in each if late is not None), default=0.0) for each in admissions]
    medians = [float(np.median([late for late in each if late is not None] or [0.0])) for each in admissions]
    down_s = [restart.listens_at - restart.killed_at for restart in happened]
    tries = [_between(trainer["opened_at"], restart, happened) for restart in happened for trainer in trainers]
    sent = sum(_between(trainer["sent_at"], restart, happened) for restart in happened for trainer in trainers)
    got = sum(
        _between([at for _, at, _ in trainer["answers"]], restart, happened)
        for restart in happened
        for trainer in trainers
    )
    peaks = [restart.peaks for restart in happened]
    figures = [
        Figure("trainers", len(trainers), ""),
        Figure("kills of their gateway", len(happened), ""),
        Figure("super-batches answered", answers, ""),
        Figure("time without a gateway, longest", max(down_s), "s"),
        Figure("errors at select", len(errors) + sum(each["hung"] for each in said), "", limit=0),
        Figure("trainers without an answer after a restart", never, "", limit=0),
        Figure("steps lost or doubled", lost, "", limit=0),
        Figure("answers that differ from an undisturbed gateway's", different, "", limit=0),
        Figure("answer after the gateway listens, first trainer, worst restart", max(first_s), "s"),
        Figure("answer after the gateway listens, median of trainers, worst restart", max(medians), "s"),
        Figure(
            "answer after the gateway listens, last trainer, worst restart",
            max(last_s),
            "s",
            limit=LONGEST_BACKOFF_S + DEADLINE_S,
        ),
        Figure(
            "answer after the first trainer's, last trainer, worst restart",
            max(last - first for first, last in zip(first_s, last_s, strict=True)),
            "s",
            limit=LONGEST_BACKOFF_S,
        ),
        Figure("sends for each answer after a restart", sent / max(got, 1), "", limit=1.1),
        Figure("calls of Select in one restart, largest of any trainer", max(tries), ""),
        Figure("open streams, most", max(peak.streams for peak in peaks), "", limit=len(trainers)),
        Figure(
            "bodies in the gateway, most", max(peak.body_bytes for peak in peaks) / 1024, "KiB", limit=body_bytes / 1024
        ),
        Figure("super-batches that waited for room, most", max(peak.waiting for peak in peaks), ""),
        Figure("resident memory of the gateway, most", max(peak.resident_bytes for peak in peaks) / _MIB, "MiB"),
    ]
    return figures, {
        "down_s": down_s,
        "first_s": first_s,
        "last_s": last_s,
        "median_s": medians,
        "errors": errors[:20],
        "calls_of_select": float(np.mean(tries)),
    }


def _until(restart: Restart, happened: list[Restart]) -> float:
    later = [other.killed_at for other in happened if other.killed_at > restart.killed_at]
    return min(later, default=float("inf"))


def _between(moments: list[float], restart: Restart, happened: list[Restart]) -> int:
    return sum(restart.killed_at < moment < _until(restart, happened) for moment in moments)


def _admissions(trainers: list[dict[str, Any]], restart: Restart, happened: list[Restart]) -> list[float | None]:
    """Seconds from listening to the first answer of each trainer; None where there was none before the next kill."""
    until = _until(restart, happened)
    firsts: list[float | None] = []
    for trainer in trainers:
        first = next((at for _, at, _ in trainer["answers"] if restart.listens_at < at < until), None)
        firsts.append(None if first is None else first - restart.listens_at)
    return firsts


def _lost(trainer: dict[str, Any]) -> int:
    """Steps of one trainer that were answered otherwise than once."""
    steps = [step for step, _, _ in trainer["answers"]]
    return len(set(range(max(steps, default=-1) + 1)).symmetric_difference(steps)) + len(steps) - len(set(steps))


def _different(trainer: dict[str, Any], scores: list[NDArray[np.float32]]) -> int:
    run_id, rank = run_of(trainer["number"], RUNS)
    return sum(told != _expected(run_id, rank, step, scores) for step, _, told in trainer["answers"])


def _expected(run_id: str, rank: int, step: int, scores: list[NDArray[np.float32]]) -> str:
    spec, of_step = _spec(run_id), scores[step % DISTINCT]
    indices, _ = drawn_by_score(spec, SELECTORS[spec.selector], of_step, Draw(step, rank, COUNT), COUNT)
    return digest(indices, of_step)


@cache
def _spec(run_id: str) -> RunSpec:
    return digits.spec(run_id, seed=5, deadline_s=DEADLINE_S)


def _ready(target: str) -> list[NDArray[np.float32]]:
    """Creates the runs, and returns the scores of each super-batch."""
    with SelectionClient(target, timeout_s=TIMEOUT_S) as client:
        for number in range(RUNS):
            run = client.create_run(_spec(f"herd-{number}"))
            run.push_reference(digits.weights(2))
            run.push_weights(digits.weights(1), step=0)
        return [run.score(super_batch(number)).scores for number in range(DISTINCT)]


def _body_bytes() -> int:
    return sum(column.nbytes for column in super_batch(0).values()) + 1024


@contextmanager
def _herds(target: str, trainers: int, processes: int) -> Iterator[list[Herd]]:
    each = trainers // processes
    with ExitStack() as stack:
        herds = [Herd(target, first, each, trainers / UPDATES_PER_S) for first in range(0, trainers, each)]
        for herd in herds:
            stack.callback(herd.kill)
        yield herds


def _restart(served: Served, herds: list[Herd]) -> Restart:
    """Kills the gateway, and watches the next one until every trainer has come back."""
    restart = Restart(killed_at=time.monotonic())
    served.kill_and_start_again()
    wait_until(lambda: _listens(served.port), "the gateway listens again", TIMEOUT_S)
    restart.listens_at = time.monotonic()
    for herd in herds:
        herd.look()
    all_back = threading.Event()
    watch = threading.Thread(target=_watch, args=(restart.peaks, served, all_back), daemon=True)
    watch.start()
    try:
        for herd in herds:
            herd.wait_for_answers()
    finally:
        all_back.set()
        watch.join(TIMEOUT_S)
    return restart


def _watch(peaks: Peaks, served: Served, all_back: threading.Event) -> None:
    metrics = Metrics(f"http://127.0.0.1:{served.metrics_port}/metrics")
    while not all_back.wait(_POLL_S):
        _look(peaks, metrics, served.pid)


def _look(peaks: Peaks, metrics: Metrics, pid: int) -> None:
    peaks.resident_bytes = max(peaks.resident_bytes, psutil.Process(pid).memory_info().rss)
    try:
        streams, bodies, waiting = (
            metrics.value(f"preceptor_{name}") for name in ("select_streams", "in_flight_bytes", "bodies_waiting")
        )
    except OSError:
        return
    peaks.streams = max(peaks.streams, streams)
    peaks.body_bytes = max(peaks.body_bytes, bodies)
    peaks.waiting = max(peaks.waiting, waiting)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
