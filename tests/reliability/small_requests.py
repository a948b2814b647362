"""Small requests as fast as they go, through the shipped client, in a process of their own, for the proofs `memory-…`.

Four trainers, of two runs, select with many super-batches in flight, and do now and then what a long life sees: score,
push weights, look at the status, connect anew, and have a run that comes and goes. Reads lines of JSON, `Task` each,
and does one after the other; says a `Told` ten times a second, and at the end of each. Ends with its input.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np

from preceptor import PreceptorError, Run, RunSpec, Selection, SelectionClient
from tests.service import digits

RUNS, RANKS = 2, 2
IN_FLIGHT = 16
SCORE_EVERY = 20

_MODEL: dict[str, Any] = {"in_channels": 1, "image_size": 4, "num_classes": 2, "width": 1}
_ROWS, _COUNT = 8, 2
_TIMEOUT_S = 60.0
_TELL_EVERY_S = 0.1
_TOLD_ERRORS = 20


@dataclass(frozen=True)
class Task:
    """So many requests of new runs, whose names begin with `name`.

    Each trainer does something beside after `beside_every` of its own: connects anew, and in turn pushes, where it is
    of rank 0, or has a run that comes and goes.
    """

    name: str
    target: str
    requests: int
    beside_every: int
    model: str
    score: str


@dataclass
class Told:
    """What came of a task so far.

    Attributes:
        requests: super-batches that were selected from or scored.
        failures: those of them, and what was done beside, that raised; `errors` has the first ones.
        is_done: whether that is all.
    """

    requests: int = 0
    failures: int = 0
    pushes: int = 0
    connections: int = 0
    runs: int = 0
    errors: list[str] = field(default_factory=list)
    is_done: bool = False


class _Trainer:
    """One rank of one run, for one thread."""

    def __init__(self, task: Task, number: int) -> None:
        self.told = Told()
        self._task = task
        self._run_id, self._rank = f"{task.name}-{number % RUNS}", number // RUNS
        self._step = 0
        self._flying: deque[Future[Selection]] = deque()
        self._client = SelectionClient(task.target, timeout_s=_TIMEOUT_S)
        self._run = _ready(self._client, self._task, self._run_id)
        rng = np.random.default_rng(number)
        self._batch = {
            "image": rng.integers(0, 256, (_ROWS, 1, 4, 4), dtype=np.uint8),
            "label": rng.integers(0, 2, _ROWS, dtype=np.int64),
        }

    def train(self, requests: int) -> None:
        """Does so many, and what comes beside them."""
        beside = itertools.cycle((self._have_a_short_run if self._rank else self._push, self._connect_anew))
        for number in range(1, requests + 1):
            self._try(self._score if number % SCORE_EVERY == 0 else self._select)
            self.told.requests += 1
            if number % self._task.beside_every == 0:
                self._try(next(beside))
        self._try(self._land)
        self._client.close()

    def _try(self, do: Callable[[], None]) -> None:
        try:
            do()
        except (PreceptorError, TimeoutError) as error:
            self.told.failures += 1
            self.told.errors.append(f"{self._run_id}, step {self._step}: {type(error).__name__}: {error}")
            del self.told.errors[_TOLD_ERRORS:]

    def _select(self) -> None:
        """Offers one, and waits for the oldest in flight."""
        self._flying.append(self._run.submit(self._batch, _COUNT, self._step, self._rank))
        self._step += 1
        if len(self._flying) == IN_FLIGHT:
            self._flying.popleft().result(_TIMEOUT_S)

    def _score(self) -> None:
        self._run.score(self._batch)

    def _push(self) -> None:
        self._run.push_weights(_weights(self._step), step=self._step)
        self._run.status()
        self.told.pushes += 1

    def _land(self) -> None:
        while self._flying:
            self._flying.popleft().result(_TIMEOUT_S)

    def _connect_anew(self) -> None:
        self._land()
        self._client.close()
        self._client = SelectionClient(self._task.target, timeout_s=_TIMEOUT_S)
        self._run = self._client.get_run(self._run_id)
        self.told.connections += 1

    def _have_a_short_run(self) -> None:
        run_id = f"{self._run_id}-{self._step}"
        run = _ready(self._client, self._task, run_id)
        run.select(self._batch, _COUNT, step=0)
        self._client.delete_run(run_id)
        self.told.runs += 1


def _ready(client: SelectionClient, task: Task, run_id: str) -> Run:
    """Creates a run with its weights; again, it is the same."""
    spec = RunSpec(
        run_id,
        model=task.model,
        model_config=_MODEL,
        reference_model="small_cnn",
        reference_model_config=_MODEL,
        score=task.score,
    )
    run = client.create_run(spec)
    run.push_reference(_weights(0))
    run.push_weights(_weights(1), step=0)
    return run


def _weights(seed: int) -> Mapping[str, Any]:
    return digits.weights(seed, _MODEL)


def _do(task: Task) -> None:
    trainers = [_Trainer(task, number) for number in range(RUNS * RANKS)]
    threads = [threading.Thread(target=each.train, args=(task.requests // len(trainers),)) for each in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(_TELL_EVERY_S)
            _say(trainers, is_done=False)
    with SelectionClient(task.target, timeout_s=_TIMEOUT_S) as client:
        for number in range(RUNS):
            client.delete_run(f"{task.name}-{number}")
    _say(trainers, is_done=True)


def _say(trainers: list[_Trainer], is_done: bool) -> None:
    each = [trainer.told for trainer in trainers]
    told = Told(
        requests=sum(one.requests for one in each),
        failures=sum(one.failures for one in each),
        pushes=sum(one.pushes for one in each),
        connections=sum(one.connections for one in each),
        runs=sum(one.runs for one in each),
        errors=[error for one in each for error in one.errors][:_TOLD_ERRORS],
        is_done=is_done,
    )
    sys.stdout.write(json.dumps(asdict(told)) + "\n")
    sys.stdout.flush()


def _read(tasks: SimpleQueue[Task]) -> None:
    for line in sys.stdin:
        tasks.put(Task(**json.loads(line)))
    os._exit(0)  # whoever asked is gone, and so is what for


def main() -> None:
    """Does what it is asked to."""
    tasks: SimpleQueue[Task] = SimpleQueue()
    threading.Thread(target=_read, args=(tasks,), daemon=True).start()
    while True:
        _do(tasks.get())


if __name__ == "__main__":
    main()
