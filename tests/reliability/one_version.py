"""Proof `one-version`: weights are pushed without pause while trainers select; no answer is of two versions.

The learner's loss is the number of its push, exactly, for every candidate: all of its weights are 0 but for one bias.
So each score tells which version it was made with, whatever the answer says, and a super-batch of several
micro-batches, on several scorers, tells whether they agreed.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
from rich.progress import track

from benchmarks.results import Figure
from benchmarks.suite import Measured
from preceptor import Run, RunSpec, Selection, SelectionClient
from preceptor_service.models import ArchitectureRegistry
from tests.reliability.reference_run import MICRO_BATCH_ROWS
from tests.reliability.served import serve
from tests.reliability.traffic import Traffic

PUSHES, PUSHES_ON_RAY, SHORT_PUSHES = 10_000, 1_000, 60
TRAINERS = 3

_ROWS = 4 * MICRO_BATCH_ROWS
_IN_FLIGHT = 4
_TIMEOUT_S = 60.0
_LOOK_EVERY = 10
_PUSHER_RANK = TRAINERS
_BASE = 100.0
"""Above about 17 the loss log(1 + exp(x)) is x, to the last bit of a float32."""

_MODEL: dict[str, Any] = {"in_channels": 1, "image_size": 4, "num_classes": 2, "width": 1}
_SPEC = RunSpec("one-version", model="small_cnn", model_config=_MODEL, score="hard_learner", seed=1)

Fault = Literal["mixed", "misnamed", "backward", "late"]


@dataclass
class Seen:
    """What trainers saw: how many answers, of which versions, and what was wrong with them."""

    answers: int = 0
    versions: set[int] = field(default_factory=set)
    faults: Counter[Fault] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)
    newest: int = 0

    def look(self, selection: Selection, at_least: int = 0) -> None:
        """Compares one answer with what its scores say, and with the answers before it."""
        numbers = np.unique(selection.scores - np.float32(_BASE))
        version = selection.learner_version or 0
        self.answers += 1
        self.versions.add(version)
        if len(numbers) > 1:
            self._fault("mixed", selection, f"its scores are of {numbers.tolist()}")
        elif selection.scores.shape != (_ROWS,) or numbers[0] != version or selection.learner_step != version:
            self._fault("misnamed", selection, f"its scores are of {numbers.tolist()}")
        if version < self.newest:
            self._fault("backward", selection, f"{self.newest} was seen before")
        if version < at_least:
            self._fault("late", selection, f"{at_least} was pushed and answered before it was asked")
        self.newest = max(self.newest, version)

    def _fault(self, fault: Fault, selection: Selection, text: str) -> None:
        self.faults[fault] += 1
        self.told.append(f"{fault}: step {selection.step} is answered with {selection.learner_version}; {text}")


class _Trainer:
    """Selects with some super-batches in flight, and looks at every answer; for one thread."""

    def __init__(self, run: Run, rank: int) -> None:
        self.seen = Seen()
        self._run = run
        self._rank = rank
        self._next = 0
        self._flying: deque[Future[Selection]] = deque()
        rng = np.random.default_rng(rank)
        self._batch = {
            "image": rng.integers(0, 256, (_ROWS, 1, 4, 4), dtype=np.uint8),
            "label": np.zeros(_ROWS, np.int64),
        }

    def __call__(self, step: int) -> Selection:
        """Returns the answer to the oldest super-batch in flight."""
        while len(self._flying) < _IN_FLIGHT:
            self._flying.append(self._run.submit(self._batch, 8, self._next, self._rank))
            self._next += 1
        selection = self._flying.popleft().result(_TIMEOUT_S)
        self.seen.look(selection)
        return selection

    def select_now(self, step: int, at_least: int) -> None:
        """Selects once, with nothing else in flight."""
        self.seen.look(self._run.select(self._batch, 8, step, self._rank), at_least)


@dataclass
class Tally:
    """What came of some pushes: of the trainers, of the one that pushes, and how long it took."""

    pushes: int
    seconds: float
    unnumbered: int
    errors: list[str]
    seen: list[Seen]

    @property
    def told(self) -> list[str]:
        """Everything that was wrong."""
        return [*self.errors, *(text for seen in self.seen for text in seen.told)]

    def count(self, fault: Fault) -> int:
        """Answers that were wrong in this way."""
        return sum(seen.faults[fault] for seen in self.seen)


def push_under_load(target: str, pushes: int, title: str) -> Tally:
    """Creates the run, and pushes so often, one push after the other, while trainers select from it."""
    with ExitStack() as stack:
        clients = [stack.enter_context(SelectionClient(target, timeout_s=_TIMEOUT_S)) for _ in range(TRAINERS + 1)]
        runs = [client.create_run(_SPEC) for client in clients]
        pusher, looking = runs[-1], _Trainer(runs[-1], _PUSHER_RANK)
        pusher.push_weights(_weights(1), step=1)
        trainers = [_Trainer(run, rank) for rank, run in enumerate(runs[:-1])]
        unnumbered = 0
        with Traffic(trainers) as traffic:
            traffic.wait_for_steps(1)
            began = time.monotonic()
            for number in track(range(2, pushes + 2), title):
                unnumbered += pusher.push_weights(_weights(number), step=number).version != number
                if number % _LOOK_EVERY == 0:
                    looking.select_now(number, at_least=number)
            seconds = time.monotonic() - began
            traffic.wait_for_steps(_IN_FLIGHT + 1)
        errors = [step.error or "" for step in traffic.so_far().errors()]
        seen = [trainer.seen for trainer in (*trainers, looking)]
        return Tally(pushes, seconds, unnumbered, errors, seen)


def run(short: bool) -> Measured:
    """Returns the figures, and the pushes and answers of each pool."""
    tallies = {}
    with serve(1, pool="in-process") as served:
        pushes = SHORT_PUSHES if short else PUSHES
        tallies["in-process"] = push_under_load(served.target, pushes, "1 scorer in process")
    if not short:
        with serve(2, pool="ray") as served:
            tallies["ray"] = push_under_load(served.target, PUSHES_ON_RAY, "2 scorers on Ray")
    return figures_of(tallies)


def figures_of(tallies: dict[str, Tally]) -> Measured:
    """Returns what the tallies of several pools come to."""

    def total(fault: Fault) -> int:
        return sum(tally.count(fault) for tally in tallies.values())

    every = tallies.values()
    rates = [tally.pushes / tally.seconds for tally in every]
    versions = sum(len(set[int]().union(*(seen.versions for seen in tally.seen))) for tally in every)
    figures = [
        Figure("pushes", sum(tally.pushes for tally in every), ""),
        Figure("pushes per second, of the slower pool", min(rates), "Hz", limit=5, sense="at least"),
        Figure("super-batches answered meanwhile", sum(seen.answers for tally in every for seen in tally.seen), ""),
        Figure("versions that some answer was made with", versions, ""),
        Figure("answers of several versions", total("mixed"), "", limit=0),
        Figure("answers that name another version than their scores", total("misnamed"), "", limit=0),
        Figure("answers that go back", total("backward"), "", limit=0),
        Figure("answers older than a push that was answered before", total("late"), "", limit=0),
        Figure("pushes that skip a number", sum(tally.unnumbered for tally in every), "", limit=0),
        Figure("super-batches that failed", sum(len(tally.errors) for tally in every), "", limit=0),
    ]
    raw = {
        name: {
            "pushes": tally.pushes,
            "seconds": round(tally.seconds, 1),
            "answers": sum(seen.answers for seen in tally.seen),
            "faults": tally.told[:50],
        }
        for name, tally in tallies.items()
    }
    return figures, raw


@cache
def _shapes() -> dict[str, tuple[int, ...]]:
    outline = ArchitectureRegistry().outline("small_cnn", _MODEL).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in outline.items()}


def _weights(number: int) -> dict[str, Any]:
    """A learner whose loss is `_BASE + number` for every candidate of label 0."""
    state = {name: np.zeros(shape, np.float32) for name, shape in _shapes().items()}
    state["head.bias"][1] = _BASE + number
    return state
