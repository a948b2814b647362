"""Proof `chaos`: trainers in processes of their own, and every little while some process is killed or hangs.

Each trainer saves checkpoints and, when it is the one that is killed, goes on from the last. Afterwards every answer
that anybody ever got is compared with what an undisturbed run gives, and every trainer's history is gone through.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.results import Figure
from benchmarks.suite import Measured
from preceptor import RunSpec
from tests.cluster.hosts import can_make_hosts
from tests.reliability.layout import SCORERS, Layout, laid_out
from tests.reliability.reference_run import chained, differs, settings_of
from tests.reliability.served import CONTROLLER, SCORER, wait_until
from tests.reliability.steady_pusher import Pusher
from tests.reliability.traffic import Mark, Record, Step, read
from tests.reliability.trainer import Trainer

RANKS = 4
"""Trainers of one run; the last run's learner is pushed all the time."""
AROUND_S = 5.0
"""What begins up to so long after a kill is said to have felt it."""
KILL_LIMIT_S, HANG_LIMIT_S = 5.0, 15.0
_END_S = 150.0
_READY_S = 240.0


@dataclass(frozen=True)
class Form:
    """How much of it: trainers, how long, how often something happens, and on how many hosts (1 or 2)."""

    trainers: int
    seconds: float
    every_s: float
    hang_s: float
    hosts: int
    update_s: float = 0.25


WHOLE = Form(trainers=16, seconds=600, every_s=20, hang_s=15, hosts=2)
SHORT = Form(trainers=4, seconds=60, every_s=10, hang_s=8, hosts=1)


class Workers:
    """Trainers and pusher, each a process that is started again, on its host, when it was killed."""

    def __init__(self, layout: Layout, trainers: Sequence[Trainer], pusher: Pusher) -> None:
        commands = {f"trainer {trainer.number}": trainer.command for trainer in trainers}
        commands["pusher"] = pusher.command
        self._start = {
            name: partial(layout.start, number, command) for number, (name, command) in enumerate(commands.items())
        }
        self._running = {name: start() for name, start in self._start.items()}

    def kill(self, name: str) -> None:
        """Kills one and starts it again."""
        _end(self._running[name])
        self._running[name] = self._start[name]()

    def stop(self) -> None:
        """Lets each end its step and waits for that.

        Raises:
            RuntimeError: one ended otherwise.
        """
        for process in self._running.values():
            assert process.stdin is not None
            process.stdin.close()
        for name, process in self._running.items():
            if process.wait(_END_S):
                raise RuntimeError(f"{name} ended with {process.returncode}")

    def kill_all(self) -> None:
        """Ends what is left."""
        for process in self._running.values():
            _end(process)


def _end(process: subprocess.Popen[Any]) -> None:
    with process:  # closes its pipe, and waits
        process.kill()


class Misfortune:
    """Everything that happens to the service and its trainers, one thing at a time."""

    def __init__(self, layout: Layout, workers: Workers, form: Form, seed: int) -> None:
        self._layout = layout
        self._workers = workers
        self._form = form
        self._random = random.Random(seed)
        self._pause = threading.Event()
        self.kinds: dict[str, Callable[[], None]] = {
            "kill scorer": lambda: self._kill(SCORER),
            "hang scorer": self._hang_scorer,
            "kill gateway": lambda: os.kill(self._layout.busiest_gateway(), signal.SIGKILL),
            "kill controller": lambda: self._kill(CONTROLLER),
            "kill pusher": lambda: self._workers.kill("pusher"),
            "kill trainer": lambda: self._workers.kill(f"trainer {self._random.randrange(self._form.trainers)}"),
        }

    def marks(self, console: Console) -> Iterator[Mark]:
        """Does one thing after the other, in random order, each as often as the others."""
        began = time.monotonic()
        until = began + self._form.seconds
        due = began + self._form.every_s
        coming: list[str] = []
        while True:
            self._pause.wait(max(0.0, min(due, until) - time.monotonic()))
            if time.monotonic() >= until - self._form.every_s / 2:
                return
            coming = coming or self._random.sample(sorted(self.kinds), len(self.kinds))
            kind = coming.pop()
            # The promise is for one lost at a time.
            if kind.endswith("scorer"):
                wait_until(lambda: self._layout.running_scorers() == SCORERS, "two scorers run", _READY_S)
            elif kind.endswith("gateway"):
                wait_until(self._all_gateways_run, "every gateway runs", _READY_S)
            mark = Mark(kind, time.monotonic(), 0.0)
            self.kinds[kind]()
            mark.ended_s = time.monotonic()
            # Where a replacement kept it waiting, the next one keeps its distance: nothing is around two of them.
            due = max(due + self._form.every_s, mark.ended_s + AROUND_S)
            console.print(f"  {mark.ended_s - began:5.0f} s  {kind}")
            yield mark

    def _all_gateways_run(self) -> bool:
        return self._layout.running_gateways() == self._layout.hosts

    def _kill(self, title: str) -> None:
        wait_until(lambda: bool(self._layout.pids(title)), f"there is a {title}", _READY_S)
        os.kill(self._random.choice(self._layout.pids(title)), signal.SIGKILL)

    def _hang_scorer(self) -> None:
        hung = self._random.choice(self._layout.pids(SCORER))
        os.kill(hung, signal.SIGSTOP)
        try:
            self._pause.wait(self._form.hang_s)
        finally:
            os.kill(hung, signal.SIGCONT)


@dataclass(frozen=True)
class Judged:
    """What is wrong with one trainer's history."""

    steps: int
    lost: int
    doubled: int
    different: int
    changed: int
    backward: int
    differs_from_checkpoint: bool


def judge(trainer: Trainer, settings: RunSpec, answers: Sequence[Step]) -> Judged:
    """Compares all answers of one trainer with an undisturbed run, and its history with its checkpoint."""
    checkpoint = json.loads(trainer.checkpoint.read_text())
    given = [answer for answer in answers if answer.error is None]
    # A trainer that goes back to its checkpoint is trained anew on what follows, so the last answer counts.
    history = {answer.step: str(answer.indices) for answer in given}
    trained = range(checkpoint["trained"])
    told = ""
    for step in trained:
        told = chained(told, history.get(step, ""))
    lives = _lives(given)
    return Judged(
        steps=len(trained),
        lost=sum(step not in history for step in trained),
        doubled=abs(checkpoint["loader"]["step"] - checkpoint["trained"]),
        different=sum(differs(settings, trainer.rank, answer) for answer in given),
        changed=_changed(given),
        backward=sum(
            (after.version or 0) < (before.version or 0) for life in lives for before, after in itertools.pairwise(life)
        ),
        differs_from_checkpoint=told != checkpoint["history"],
    )


def _changed(answers: Sequence[Step]) -> int:
    """How many steps were answered again, after a kill, and otherwise though by the same weights."""
    given: dict[tuple[int, int | None], set[tuple[str | None, int | None]]] = defaultdict(set)
    for answer in answers:
        given[answer.step, answer.version].add((answer.indices, answer.learner_step))
    return sum(len(different) > 1 for different in given.values())


def _lives(answers: Sequence[Step]) -> list[list[Step]]:
    """Splits a trainer's answers where it went back to its checkpoint."""
    lives: list[list[Step]] = []
    for answer in answers:
        if not lives or answer.step <= lives[-1][-1].step:
            lives.append([])
        lives[-1].append(answer)
    return lives


@contextmanager
def _working(workers: Workers) -> Iterator[None]:
    try:
        yield
        workers.stop()
    finally:
        workers.kill_all()


def _settings(trainer: int, trainers: int) -> RunSpec:
    number = trainer // RANKS
    is_pushed = number == (trainers - 1) // RANKS
    return settings_of("pushed" if is_pushed else f"still-{number}")


def run(short: bool, form: Form | None = None, seed: int = 4) -> Measured:
    """Runs the proof; `form` is another one than the two."""
    form = form or (SHORT if short else WHOLE)
    console = Console()
    hosts, lacking = form.hosts, ""
    if hosts > 1 and not can_make_hosts():
        hosts, lacking = 1, "one node only: this machine lacks root, or network namespaces (Debian package iproute2)"
        console.print(f"  [bold red]{lacking}")
    with tempfile.TemporaryDirectory(prefix="preceptor-chaos-") as folder, laid_out(hosts) as layout:
        specs = [_settings(number, form.trainers) for number in range(form.trainers)]
        _make_ready(layout, {settings.run_id for settings in specs})
        trainers = [
            Trainer(number, settings.run_id, number % RANKS, layout.target, folder, form.update_s)
            for number, settings in enumerate(specs)
        ]
        pusher = Pusher("pushed", layout.target, folder, pause_s=0.3)
        workers = Workers(layout, trainers, pusher)
        with _working(workers):
            wait_until(
                lambda: (
                    all(len(read([t.answers])) >= 20 for t in trainers if _has_begun(t))
                    and all(map(_has_begun, trainers))
                ),
                "every trainer took 20 steps",
                _READY_S,
            )
            calm_until = time.monotonic()
            marks = list(Misfortune(layout, workers, form, seed).marks(console))
        answers = {trainer.number: read([trainer.answers]) for trainer in trainers}
        judged = [judge(t, settings, answers[t.number]) for t, settings in zip(trainers, specs, strict=True)]
        pushes = [json.loads(line) for line in pusher.pushes.read_text().splitlines() if line.endswith("}")]
    record = Record([step for steps in answers.values() for step in steps], marks, time.monotonic())
    figures, raw = _figures(record, judged, pushes, calm_until)
    # Each host has one gateway.
    return [Figure("hosts", hosts, ""), Figure("gateways", hosts, ""), *figures], {"lacking": lacking, **raw}


def _make_ready(layout: Layout, run_ids: Collection[str]) -> None:
    command = [sys.executable, "-m", "tests.reliability.ready_runs", layout.target, *run_ids]
    with layout.start(0, command) as process:
        if process.wait(_READY_S):
            raise RuntimeError(f"making the runs ready ended with {process.returncode}")


def _has_begun(trainer: Trainer) -> bool:
    return trainer.answers.exists()


def _figures(record: Record, judged: Sequence[Judged], pushes: Sequence[dict[str, Any]], calm_until: float) -> Measured:
    errors = record.errors()
    calm = [step.latency_s for step in record.steps if step.ended_s < calm_until]
    usual_s = statistics.median(calm)
    added = {
        kind: _added(record, [mark for mark in record.marks if mark.name == kind], usual_s)
        for kind in sorted({mark.name for mark in record.marks})
    }
    killed = [latency for kind, latencies in added.items() if kind.startswith("kill") for latency in latencies]
    hung = [latency for kind, latencies in added.items() if kind.startswith("hang") for latency in latencies]
    failed = [push["error"] for push in pushes if "error" in push]
    figures = [
        Figure("steps trained on", sum(one.steps for one in judged), ""),
        Figure("processes killed or hung", len(record.marks), ""),
        Figure("steps lost", sum(one.lost for one in judged), "", 0),
        Figure("steps doubled", sum(one.doubled for one in judged), "", 0),
        Figure("answers that differ from the undisturbed run", sum(one.different for one in judged), "", 0),
        Figure("steps answered again, and otherwise, by the same weights", sum(one.changed for one in judged), "", 0),
        Figure(
            "histories that differ from their checkpoint", sum(one.differs_from_checkpoint for one in judged), "", 0
        ),
        Figure("learner versions that went back", sum(one.backward for one in judged), "", 0),
        Figure("errors seen by select()", len(errors), "", 0),
        Figure("fallbacks", sum(step.is_fallback for step in record.steps), "", 0),
        Figure("added wait around a kill, p99", _p99(killed), "s", KILL_LIMIT_S),
        Figure("added wait around a kill, longest", max(killed, default=0.0), "s"),
        Figure("added wait around a hang, p99", _p99(hung), "s", HANG_LIMIT_S),
        Figure("added wait around a hang, longest", max(hung, default=0.0), "s"),
        Figure("pushes acknowledged", len(pushes) - len(failed), ""),
        Figure("pushes that failed, saying why", len(failed), ""),
    ]
    raw = {
        "usual_wait_s": usual_s,
        "around_s": AROUND_S,
        "added_wait_s": {
            kind: {
                "marks": sum(mark.name == kind for mark in record.marks),
                "steps": len(latencies),
                "p50": float(np.percentile(latencies, 50)),
                "p99": _p99(latencies),
                "longest": max(latencies),
            }
            for kind, latencies in added.items()
            if latencies
        },
        "trainers": [asdict(one) for one in judged],
        "errors": [step.error for step in errors][:20],
        "failed_pushes": failed[:20],
    }
    return figures, raw


def _added(record: Record, marks: Sequence[Mark], usual_s: float) -> list[float]:
    """How much longer than usual trainers waited for what was under way at one of `marks` or began soon after."""
    return [max(0.0, step.latency_s - usual_s) for mark in marks for step in record.around(mark, AROUND_S)]


def _p99(values: Sequence[float]) -> float:
    return float(np.percentile(values, 99)) if values else 0.0
