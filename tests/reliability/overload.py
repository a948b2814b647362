"""Proof `overload`: five times what the scorer can do, from callers who never give way, and from our own trainers.

The scorer takes a fixed time for each micro-batch, so that a busy machine does not change what it can do. A flood
offers at a fixed rate, whatever the gateway says. Trainers are so many that, if nothing held them back, they would need
as much.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.results import Figure
from benchmarks.suite import Measured
from preceptor import Run, RunSpec, Selection, SelectionClient
from preceptor.retry_budget import RetryBudget
from preceptor.v1 import selection_pb2
from tests.reliability.reference_run import MICRO_BATCH_ROWS
from tests.reliability.served import serve
from tests.service import digits
from tests.service.raw import RawChannel, select_open, super_batch

TIMES = 5.0
RUNS = 4
TRAINERS = 8
PACE_S = 0.04
DEADLINE_S = 2.0
SECONDS, SHORT_SECONDS = 60.0, 6.0
WARM_UP_S = 3.0
ARCHITECTURES = {"paced": "tests.service.architectures:paced"}

_TIMEOUT_S = 60.0
_IN_FLIGHT = 5
_steps = itertools.count(1)

Load = Callable[["Counted"], AbstractContextManager[None]]


@dataclass
class Counted:
    """What came of a time of load: answers, refusals and how long they took, anything else; and what clients sent."""

    answered_at: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    offered: int = 0
    other: list[str] = field(default_factory=list)
    first_sends: int = 0
    sends_again: int = 0

    def take(self, future: Future[Selection]) -> None:
        """Waits for what a client answers."""
        error = future.exception()
        if error is None:
            self.answered_at.append(time.monotonic())
        else:
            self.other.append(f"{type(error).__name__}: {error}")

    def per_second(self, began: float, seconds: float) -> float:
        """Answers per second in a time."""
        return sum(began <= moment < began + seconds for moment in self.answered_at) / seconds


def run(short: bool) -> Measured:
    """Returns the figures, and the counts behind them."""
    seconds = SHORT_SECONDS if short else SECONDS
    console = Console()
    with serve(1, pool="in-process", architectures=ARCHITECTURES) as served, SelectionClient(served.target) as client:
        for number in range(RUNS):
            _paced_run(client, _run_id(number))
        peak, _ = _measured("peak", seconds, console, partial(_trainers, served.target, RUNS, None))
        rate = TIMES * peak
        flood, flooded = _measured(
            f"flood, {rate:.0f} per second", seconds, console, partial(_flood, served.target, rate)
        )
        crowd = partial(_trainers, served.target, TRAINERS, rate / TRAINERS)
        fleet, trainers = _measured(f"{TRAINERS} trainers, {rate:.0f} per second", seconds, console, crowd)
    sends = trainers.first_sends + trainers.sends_again
    figures = [
        Figure("goodput at peak, super-batches", peak, "/s"),
        Figure("offered, of what is the peak", TIMES, "×"),
        Figure("goodput of the flood, of peak", flood / peak, "", limit=0.9, sense="at least"),
        Figure("goodput of trainers, of peak", fleet / peak, "", limit=0.9, sense="at least"),
        Figure("refusals of the flood", len(flooded.refused_s), "", limit=1, sense="at least"),
        Figure("time to a refusal, p99", _p99(flooded.refused_s) * 1000, "ms", limit=50),
        Figure("retry amplification, sends over super-batches sent", sends / trainers.first_sends, "", limit=1.1),
        Figure("answers of another kind", len(flooded.other) + len(trainers.other), "", limit=0),
    ]
    raw = {
        name: {
            "offered": counted.offered,
            "answered": len(counted.answered_at),
            "refused": len(counted.refused_s),
            "first_sends": counted.first_sends,
            "sends_again": counted.sends_again,
            "other": counted.other[:20],
        }
        for name, counted in (("flood", flooded), ("trainers", trainers))
    }
    return figures, {"seconds": seconds, "pace_s": PACE_S, **raw}


def _run_id(number: int) -> str:
    return f"overload-{number % RUNS}"


def _paced_run(client: SelectionClient, run_id: str) -> Run:
    spec = RunSpec(
        run_id, "paced", model_config={"pace_s": PACE_S}, score="hard_learner", deadline_s=DEADLINE_S, seed=1
    )
    run = client.create_run(spec)
    run.push_weights(digits.gated_weights(1), step=0)
    return run


def _measured(title: str, seconds: float, console: Console, load: Load) -> tuple[float, Counted]:
    """Returns answers per second under `load`, once it has lasted for a while, and what was counted."""
    console.print(f"{title}: {WARM_UP_S + seconds:.0f} s …")
    counted = Counted()
    with load(counted):
        _wait(WARM_UP_S)
        began = time.monotonic()
        _wait(seconds)
    return counted.per_second(began, seconds), counted


@contextmanager
def _trainers(target: str, count: int, each_per_second: float | None, counted: Counted) -> Iterator[None]:
    """Shipped clients with some super-batches in flight each, whose training takes its time; None: no time."""
    stop = threading.Event()

    def train(client: SelectionClient, number: int) -> None:
        run = client.get_run(_run_id(number))
        flying: deque[Future[Selection]] = deque()
        next_at = time.monotonic()
        while not stop.wait(0.0 if each_per_second is None else max(0.0, next_at - time.monotonic())):
            while len(flying) < _IN_FLIGHT:
                counted.offered += 1
                flying.append(run.submit(_batch(), 1, next(_steps)))
            counted.take(flying.popleft())
            next_at = max(next_at + 1 / each_per_second, time.monotonic()) if each_per_second is not None else 0.0
        for future in flying:
            counted.take(future)

    with ExitStack() as stack, _counted_sends(counted):
        clients = [stack.enter_context(SelectionClient(target, timeout_s=_TIMEOUT_S)) for _ in range(count)]
        with _threads([partial(train, client, number) for number, client in enumerate(clients)], stop):
            yield


@contextmanager
def _flood(target: str, rate: float, counted: Counted) -> Iterator[None]:
    """Raw streams, one for each run, that together offer `rate` super-batches per second and never give way."""
    stop = threading.Event()
    with ExitStack() as stack:
        streams = [
            _FloodingStream(stack.enter_context(RawChannel(target, timeout_s=2 * SECONDS)), f"overload-{n}", counted)
            for n in range(RUNS)
        ]
        offering = [lambda stream=stream: stream.offer(RUNS / rate, stop) for stream in streams]
        with _threads([*offering, *(stream.read for stream in streams)], stop):
            yield
            stop.set()
            for stream in streams:
                stream.end()


class _FloodingStream:
    def __init__(self, channel: RawChannel, run_id: str, counted: Counted) -> None:
        self._call = channel.call("Select", select_open(run_id))
        self._counted = counted
        self._sent: dict[int, float] = {}

    def offer(self, every_s: float, stop: threading.Event) -> None:
        next_at = time.monotonic()
        while not stop.wait(max(0.0, next_at - time.monotonic())):
            next_at += every_s
            step = next(_steps)
            messages = super_batch(_batch(), step=step)
            self._sent[step] = time.monotonic()
            self._counted.offered += 1
            self._call.send(*messages)

    def read(self) -> None:
        for response in self._call.responses():
            self._note(response, time.monotonic())

    def end(self) -> None:
        self._call.cancel()

    def _note(self, response: selection_pb2.SelectResponse, now: float) -> None:
        kind = response.WhichOneof("kind")
        if kind == "selection":
            self._counted.answered_at.append(now)
        elif kind == "failure" and response.failure.HasField("retry_after"):
            self._counted.refused_s.append(now - self._sent[response.failure.step])
        elif kind == "failure":
            self._counted.other.append(f"{response.failure.reason}: {response.failure.message}")


@contextmanager
def _counted_sends(counted: Counted) -> Iterator[None]:
    """Counts what clients of this process send for the first time, and again."""
    earn, spend = RetryBudget.earn, RetryBudget.spend

    def earning(self: RetryBudget, now: float) -> None:
        counted.first_sends += 1
        earn(self, now)

    def spending(self: RetryBudget, now: float) -> None:
        counted.sends_again += 1
        spend(self, now)

    RetryBudget.earn, RetryBudget.spend = earning, spending  # type: ignore[method-assign]
    try:
        yield
    finally:
        RetryBudget.earn, RetryBudget.spend = earn, spend  # type: ignore[method-assign]


@contextmanager
def _threads(works: list[Callable[[], None]], stop: threading.Event) -> Iterator[None]:
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60.0)


def _batch() -> dict[str, Any]:
    return digits.gated_candidates(next(_steps), MICRO_BATCH_ROWS)


def _p99(values: list[float]) -> float:
    return float(np.quantile(values, 0.99)) if values else 0.0


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)
