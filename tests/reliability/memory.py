"""Proofs `memory-…`: gateway and scorers take no more memory after a million requests than after a hundred thousand.

Judged is memory of their own: heaps and stacks. Whether the judgement would notice a leak is seen by the same rule, on
the same service, with a score rule and with an architecture that leak a little (`leaks`). What was seen of other
requests than those is taken for as many.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.progress import MofNCompleteColumn, Progress

from benchmarks.machine import ROOT
from benchmarks.process_memory import MB, anonymous_mb
from benchmarks.results import Figure
from benchmarks.suite import Measured
from tests.reliability.leaks import ARCHITECTURES, LEAK, RULES
from tests.reliability.served import GATEWAY, SCORER, Served, environment, serve
from tests.reliability.small_requests import Task, Told
from tests.service.conftest import Metrics

FIRST, LAST = 100_000, 1_000_000
GROWTH_MB, GROWTH_PERCENT = 50.0, 2.0

_WINDOW = 0.1
"""Share of the requests from first to last whose samples are taken together, at either end."""
_SILENCE_S = 300.0
_SCRAPE_EVERY = 50
_KEPT_SAMPLES = 200


@dataclass(frozen=True)
class Stretch:
    """Memory is judged from request `first` to request `last`."""

    first: int
    last: int


@dataclass(frozen=True)
class Form:
    """How much is done on one pool, and what is judged: growth, and what has to be seen of a leak."""

    pool: str
    scorers: int
    sound: Stretch
    leaky: Stretch
    beside_every: int
    leak_bytes: int
    cache_bytes: int
    growth_mb: float
    growth_percent: float | None


_IN_PROCESS = Form(
    pool="in-process",
    scorers=1,
    sound=Stretch(FIRST, LAST),
    leaky=Stretch(5_000, 50_000),
    beside_every=500,
    leak_bytes=200,
    cache_bytes=16 << 20,  # full long before request 10^5
    growth_mb=GROWTH_MB,
    growth_percent=GROWTH_PERCENT,
)
_SHORT_LEAK_BYTES = 20_000
_SHORT = Form(
    pool="in-process",
    scorers=1,
    sound=Stretch(300, 1_500),
    leaky=Stretch(100, 700),
    beside_every=150,
    leak_bytes=_SHORT_LEAK_BYTES,
    cache_bytes=1 << 17,
    growth_mb=_SHORT_LEAK_BYTES / 2 * (LAST - FIRST) / MB,
    growth_percent=None,
)
"""Tells a leak from none, and nothing else: so few requests say nothing of 2 %."""
_ON_RAY = replace(_IN_PROCESS, pool="ray", scorers=2, sound=Stretch(FIRST, 300_000), leaky=Stretch(2_000, 20_000))
# Each of the two scorers sees half of the requests.
_SHORT_ON_RAY = replace(_SHORT, pool="ray", scorers=2, leak_bytes=2 * _SHORT_LEAK_BYTES)


class Growth(NamedTuple):
    """What a process grows by from request 10^5 to 10^6, at the pace seen; percent of what it takes at the first."""

    mb: float
    percent: float


@dataclass
class Life:
    """What was seen of some requests: memory of each process in MB, by the number of requests before."""

    stretch: Stretch
    told: Told = field(default_factory=Told)
    seconds: float = 0.0
    requests: list[int] = field(default_factory=list)
    memory_mb: list[dict[str, float]] = field(default_factory=list)

    def growth(self, process: str) -> Growth:
        """Compares the medians of two windows, so that no single allocation decides."""
        window = _WINDOW * (self.stretch.last - self.stretch.first)
        early = self._around(self.stretch.first, self.stretch.first + window)
        late = self._around(self.stretch.last - window, self.stretch.last)
        memory = np.array([each[process] for each in self.memory_mb])
        at_first = float(np.median(memory[early]))
        grown = float(np.median(memory[late])) - at_first
        requests = np.array(self.requests)
        mb = grown / float(np.mean(requests[late]) - np.mean(requests[early])) * (LAST - FIRST)
        return Growth(mb, 100 * mb / at_first)

    def _around(self, first: float, last: float) -> NDArray[np.bool_]:
        """Which samples are of these requests; the nearest ones, where a pause left none."""
        off = np.abs(np.array(self.requests) - (first + last) / 2)
        near: NDArray[np.bool_] = off <= max((last - first) / 2, off.min())
        return near


class Lives(NamedTuple):
    """The three of one service."""

    sound: Life
    gateway_leaks: Life
    scorers_leak: Life


class SmallRequests:
    """The process that sends them."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.small_requests"],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the one that watches
        )

    def send(self, task: Task) -> Iterator[Told]:
        """Yields how far it is, a few times a second, until it is done.

        Raises:
            RuntimeError: it ended, or said nothing for minutes.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(task)) + "\n")
        self._process.stdin.flush()
        told = Told()
        while not told.is_done:
            told = self._said()
            yield told

    def kill(self) -> None:
        """Ends the process, wherever it is."""
        self._process.kill()
        with self._process:
            pass

    def _said(self) -> Told:
        assert self._process.stdout is not None
        alarm = threading.Timer(_SILENCE_S, self._process.kill)
        alarm.start()
        try:
            line = self._process.stdout.readline()
        finally:
            alarm.cancel()
        if not line:
            raise RuntimeError("what sends requests ended, or said nothing")
        return Told(**json.loads(line))


@contextmanager
def small_requests() -> Iterator[SmallRequests]:
    """Runs the process until the end of the block."""
    sending = SmallRequests()
    try:
        yield sending
    finally:
        sending.kill()


def in_process(short: bool) -> Measured:
    """Watches a gateway that scores by itself."""
    return measure(_SHORT if short else _IN_PROCESS)


def on_ray(short: bool) -> Measured:
    """Watches a gateway and two scorers on Ray Serve."""
    return measure(_SHORT_ON_RAY if short else _ON_RAY)


def measure(form: Form) -> Measured:
    """Runs a service, sound, then with a leak in the gateway, then in the scorers.

    Returns:
        The figures, and the memory of each process over its requests.
    """
    lives = _lives(form)
    return _figures(form, lives), {name: _raw(life) for name, life in lives._asdict().items()}


def _lives(form: Form) -> Lives:
    with (
        small_requests() as sending,
        serve(
            form.scorers,
            pool=form.pool,
            environ={LEAK: str(form.leak_bytes)},
            architectures=ARCHITECTURES,
            rules=RULES,
            answer_cache_bytes=form.cache_bytes,
        ) as served,
    ):
        watch = partial(_watch, form, served, sending)
        return Lives(
            sound=watch("sound", form.sound, "small_cnn", "learnability"),
            gateway_leaks=watch("gateway-leaks", form.leaky, "small_cnn", "leaky_learnability"),
            scorers_leak=watch("scorers-leak", form.leaky, "leaky_cnn", "learnability"),
        )


def _processes(served: Served) -> Mapping[str, int]:
    if served.pool == "in-process":
        return {"gateway and scorer": served.pid}
    (gateway,), scorers = served.pids(GATEWAY), served.pids(SCORER)
    return {"gateway": gateway, **{f"scorer {number}": pid for number, pid in enumerate(scorers, 1)}}


def _watch(
    form: Form, served: Served, sending: SmallRequests, name: str, stretch: Stretch, model: str, score: str
) -> Life:
    task = Task(name, served.target, stretch.last, form.beside_every, model, score)
    processes, life, began = _processes(served), Life(stretch), time.monotonic()
    metrics = Metrics(f"http://127.0.0.1:{served.metrics_port}/metrics")
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as progress:
        shown = progress.add_task(f"{form.pool}, {name}", total=task.requests)
        for number, told in enumerate(sending.send(task)):
            life.told = told
            life.requests.append(told.requests)
            life.memory_mb.append({process: anonymous_mb(pid) for process, pid in processes.items()})
            progress.update(shown, completed=told.requests)
            if number % _SCRAPE_EVERY == 0:
                metrics.text()
    life.seconds = time.monotonic() - began
    return life


def _figures(form: Form, lives: Lives) -> list[Figure]:
    sound, pool = lives.sound, form.pool
    processes = list(sound.memory_mb[0])
    gateway, scorers = processes[0], processes[1:] or processes
    figures = [
        Figure(f"{pool}: requests", sound.told.requests, ""),
        Figure(f"{pool}: requests per second", sound.told.requests / sound.seconds, "Hz"),
        Figure(f"{pool}: pushes meanwhile", sound.told.pushes, ""),
        Figure(f"{pool}: connections meanwhile", sound.told.connections, ""),
        Figure(f"{pool}: runs that came and went meanwhile", sound.told.runs, ""),
        Figure(f"{pool}: requests that failed", sum(life.told.failures for life in lives), "", limit=0),
    ]
    for process in processes:
        growth = sound.growth(process)
        figures += [
            Figure(f"{pool}: growth of {process}", growth.mb, "MB", limit=form.growth_mb),
            Figure(f"{pool}: growth of {process}, of itself", growth.percent, "%", limit=form.growth_percent),
        ]
    leak = f"{form.leak_bytes} bytes of each request"
    in_gateway = lives.gateway_leaks.growth(gateway).mb
    in_scorers = min(lives.scorers_leak.growth(scorer).mb for scorer in scorers)
    return [
        *figures,
        Figure(f"{pool}: growth where a gateway keeps {leak}", in_gateway, "MB", form.growth_mb, "at least"),
        Figure(f"{pool}: growth where a scorer keeps {leak}", in_scorers, "MB", form.growth_mb, "at least"),
    ]


def _raw(life: Life) -> dict[str, Any]:
    every = max(1, len(life.requests) // _KEPT_SAMPLES)
    return {
        "told": asdict(life.told),
        "seconds": round(life.seconds, 1),
        "requests": life.requests[::every],
        "memory_mb": [{name: round(mb, 2) for name, mb in each.items()} for each in life.memory_mb[::every]],
    }
