"""Many trainers in one process, each with the shipped client and a thread, for the proof `herd`.

They select in a loop until their input ends. Says one JSON line once each has an answer, one for each line of input
once each has another, and one with everything that came of it in the end. Times are of the monotonic clock, which all
processes of a machine share.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preceptor import PreceptorError, Selection, SelectionClient
from preceptor.channel import Connection
from preceptor.retry_budget import RetryBudget

DISTINCT = 4
"""Different super-batches; step s offers number s % DISTINCT."""
ROWS, COUNT = 32, 8
TIMEOUT_S = 60.0


@cache
def super_batch(number: int) -> dict[str, NDArray[np.generic]]:
    """The candidates of that number."""
    rng = np.random.default_rng(number)
    return {
        "image": rng.integers(0, 256, (ROWS, 1, 8, 8), dtype=np.uint8),
        "label": rng.integers(0, 4, ROWS, dtype=np.int64),
    }


def run_of(trainer: int, runs: int) -> tuple[str, int]:
    """The run and the rank of a trainer."""
    return f"herd-{trainer % runs}", trainer // runs


def digest_of(selection: Selection) -> str:
    """Names indices and scores."""
    return digest(selection.indices, selection.scores)


def digest(indices: NDArray[np.int64], scores: NDArray[np.float32]) -> str:
    """Names indices and scores."""
    return hashlib.sha256(indices.tobytes() + scores.tobytes()).hexdigest()[:16]


@dataclass
class Trainer:
    """What came of one trainer.

    Attributes:
        number: which one.
        answers: step, when it was answered, and the digest of the answer, in order.
        errors: what `select` raised.
        opened_at: when it called Select.
        sent_at: when it began to send a super-batch.
    """

    number: int
    answers: list[tuple[int, float, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    opened_at: list[float] = field(default_factory=list)
    sent_at: list[float] = field(default_factory=list)

    def train(self, client: SelectionClient, runs: int, update_s: float, stop: threading.Event) -> None:
        """Selects and trains for a while, until it is told to stop; finishes the step that it is at."""
        run_id, rank = run_of(self.number, runs)
        run = client.get_run(run_id)
        step = 0
        while not stop.is_set():
            try:
                selection = run.select(super_batch(step % DISTINCT), COUNT, step, rank)
                self.answers.append((step, time.monotonic(), digest_of(selection)))
            except PreceptorError as error:
                self.errors.append(f"trainer {self.number}, step {step}: {type(error).__name__}: {error}")
            step += 1
            stop.wait(update_s)


def watch(trainers: list[Trainer], clients: list[SelectionClient]) -> None:
    """Notes each call of Select and each super-batch that is sent, with the trainer whose it is."""
    of_connection = {id(client._connection): trainer for client, trainer in zip(clients, trainers, strict=True)}
    of_budget: dict[int, Trainer] = {}
    stream, earn, spend = Connection.stream, RetryBudget.earn, RetryBudget.spend

    def noted_stream(self: Connection, name: str, *arguments: Any, **named: Any) -> Any:
        if name == "Select":
            of_connection[id(self)].opened_at.append(time.monotonic())
        return stream(self, name, *arguments, **named)

    def noted(count: Any) -> Any:
        def counted(self: RetryBudget, now: float) -> None:
            trainer = of_budget.get(id(self)) or of_budget.setdefault(id(self), _owner(self, clients, trainers))
            trainer.sent_at.append(now)
            count(self, now)

        return counted

    Connection.stream = noted_stream  # type: ignore[method-assign]
    RetryBudget.earn, RetryBudget.spend = noted(earn), noted(spend)  # type: ignore[method-assign]


def _owner(budget: RetryBudget, clients: list[SelectionClient], trainers: list[Trainer]) -> Trainer:
    for client, trainer in zip(clients, trainers, strict=True):
        if any(stream._retries is budget for _, stream in client._streams.values()):
            return trainer
    raise LookupError("a retry budget of no trainer")


def _answered_since(moment: float, trainers: list[Trainer]) -> int:
    """Waits until all have an answer that is later than `moment`, for `TIMEOUT_S`; returns how many have."""
    pause = threading.Event()
    while True:
        answered = sum(bool(trainer.answers) and trainer.answers[-1][1] > moment for trainer in trainers)
        if answered == len(trainers) or time.monotonic() > moment + TIMEOUT_S:
            return answered
        pause.wait(0.05)


def say(message: dict[str, Any]) -> None:
    """Tells the parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main(target: str, first: int, count: int, runs: int, update_s: float) -> None:
    """Runs trainers `first` to `first + count - 1`."""
    stop, began = threading.Event(), time.monotonic()
    trainers = [Trainer(first + offset) for offset in range(count)]
    with ExitStack() as stack:
        clients = [stack.enter_context(SelectionClient(target, timeout_s=TIMEOUT_S)) for _ in trainers]
        watch(trainers, clients)
        threads = [
            threading.Thread(target=trainer.train, args=(client, runs, update_s, stop), daemon=True)
            for trainer, client in zip(trainers, clients, strict=True)
        ]
        for thread in threads:
            thread.start()
        say({"answered": _answered_since(began, trainers)})
        for _ in sys.stdin:
            say({"answered": _answered_since(time.monotonic(), trainers)})
        stop.set()
        for thread in threads:
            thread.join(2 * TIMEOUT_S)
        hung = Counter(thread.is_alive() for thread in threads)[True]
        say({"trainers": [asdict(trainer) for trainer in trainers], "hung": hung})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
