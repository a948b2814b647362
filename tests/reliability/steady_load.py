"""Trainers and a pusher in threads of this process: load for proofs that do something to a service on Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

from preceptor import Run, Selection, SelectionClient
from preceptor.errors import PreceptorError
from tests.ray.candidates import COUNT, state, super_batch
from tests.reliability.reference_run import differs, learner_of, settings_of
from tests.reliability.traffic import Record, Traffic

_READY_S = 120.0
_JOIN_S = 60.0
_UPDATE_S = 0.1
_PUSH_EVERY_S = 1.0
_RUN_ID = "steady"


@dataclass(frozen=True)
class Push:
    """One push: when, how long, and the error that it raised, if any."""

    began_s: float
    took_s: float
    error: str | None


@dataclass
class Load:
    """What is under way, and the pushes so far."""

    traffic: Traffic
    pushes: list[Push] = field(default_factory=list)

    def different(self, record: Record) -> int:
        """How many answers are not those of an undisturbed run; a trainer's number is its rank."""
        settings = settings_of(_RUN_ID)
        return sum(differs(settings, step.trainer, step) for step in record.steps)

    def pushes_in(self, began_s: float, ended_s: float) -> Sequence[Push]:
        """Those that began in that time."""
        return [push for push in self.pushes if began_s <= push.began_s <= ended_s]


@contextmanager
def steady_load(target: str, trainers: int) -> Iterator[Load]:
    """Selects with `trainers` ranks of one run, and pushes its learner, until the end of the block.

    All with the time-outs that the client has by default, but what makes the run ready.
    """
    with ExitStack() as stack:
        clients = [stack.enter_context(SelectionClient(target)) for _ in range(trainers + 1)]
        pushed = clients[0].create_run(settings_of(_RUN_ID))
        pushed.push_reference(state("reference"), timeout_s=_READY_S)
        pushed.push_weights(learner_of(0), step=0, timeout_s=_READY_S)
        runs = [client.create_run(settings_of(_RUN_ID)) for client in clients[1:]]
        stop = threading.Event()
        traffic = Traffic([partial(_select, run, rank, stop) for rank, run in enumerate(runs)])
        load = Load(traffic)
        pushing = threading.Thread(target=_push, args=(pushed, load.pushes, stop), name="pusher")
        with traffic:
            pushing.start()
            try:
                yield load
            finally:
                stop.set()
                pushing.join(_JOIN_S)


def _select(run: Run, rank: int, stop: threading.Event, step: int) -> Selection:
    selection = run.select(super_batch(step), COUNT, step=step, rank=rank)
    stop.wait(_UPDATE_S)
    return selection


def _push(run: Run, pushes: list[Push], stop: threading.Event) -> None:
    step = 0
    while not stop.wait(_PUSH_EVERY_S):
        step += 1
        began, error = time.monotonic(), None
        try:
            run.push_weights(learner_of(step), step=step)
        except PreceptorError as raised:
            error = f"{type(raised).__name__}: {raised}"
        pushes.append(Push(began, time.monotonic() - began, error))
