"""Proof `resume`: the same super-batches, offered in different orders to different layouts, undisturbed and killed.

Every answer, indices and scores, is compared byte for byte with what one undisturbed gateway without Ray gave. The
chunks of one super-batch have one legal order; what differs is their size, and the order of the super-batches. Answers
are not cached here, so every repeat is computed anew.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from benchmarks.results import Figure
from benchmarks.suite import Measured
from preceptor import Run, Selection, SelectionClient
from preceptor.torch import SelectingLoader
from tests.ray.candidates import COUNT, spec, state, super_batch
from tests.reliability.reference_run import learner_of
from tests.reliability.served import GATEWAY, SCORER, Served, serve, wait_until
from tests.reliability.trainer import SuperBatches

ORDERS = ("as they come", "backwards", "shuffled")
TIMEOUT_S = 240.0
_IN_FLIGHT = 16
_BACK = 7
"""Steps by which a trainer that is started again lies behind."""


@dataclass(frozen=True)
class Layout:
    """A service: scorers on Ray, or one in the gateway's process; and the largest chunk that it takes."""

    name: str
    scorers: int
    pool: str
    chunk_bytes: int


IN_PROCESS = Layout("in process", 1, "in-process", 1000)
ON_RAY = (
    Layout("1 replica", 1, "ray", 1 << 20),
    Layout("2 replicas", 2, "ray", 1000),
    Layout("4 replicas", 4, "ray", 1 << 16),
)
REFERENCE = Layout("reference", 1, "in-process", 1 << 20)

Answer = tuple[int, bytes]
"""A step, and the bytes of indices and scores."""


@dataclass
class Tally:
    """What was counted."""

    answers: int = 0
    different: int = 0
    kills: int = 0
    restarts: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def _answer(selection: Selection) -> Answer:
    return selection.step, selection.indices.tobytes() + selection.scores.tobytes()


def _ready(client: SelectionClient) -> Run:
    run = client.create_run(spec("resumed", deadline_s=100))
    run.push_reference(state("reference"))
    run.push_weights(learner_of(1), step=1)
    return run


class Killer:
    """Kills some process of a service at every n-th call, if at all."""

    def __init__(self, served: Served, every: int | None, tally: Tally) -> None:
        self._served = served
        self._every = every
        self._tally = tally
        self._random = random.Random(7)
        self._calls = 0

    def __call__(self) -> bool:
        """Returns whether it killed."""
        self._calls += 1
        if self._every is None or self._calls % self._every:
            return False
        self._tally.kills += 1
        if self._served.pool == "in-process":
            self._served.kill_and_start_again()
            return True
        victims = (SCORER, GATEWAY)[self._tally.kills % 2]
        wait_until(lambda: bool(self._served.pids(victims)), f"there is a {victims}", TIMEOUT_S)
        os.kill(self._random.choice(self._served.pids(victims)), signal.SIGKILL)
        return True


def _in_order(target: str, steps: Sequence[int], kill: Killer) -> Iterator[Answer]:
    """Offers `steps` in their order, some of them in flight together."""
    with SelectionClient(target, timeout_s=TIMEOUT_S) as client:
        run = _ready(client)
        for first in range(0, len(steps), _IN_FLIGHT):
            some = steps[first : first + _IN_FLIGHT]
            futures = [run.submit(super_batch(step), COUNT, step=step) for step in some]
            for future in futures:
                kill()
                yield _answer(future.result(TIMEOUT_S))


def _by_loader(target: str, count: int, kill: Killer, tally: Tally) -> Iterator[Answer]:
    """Trains by a `SelectingLoader`; after each kill a new trainer goes on from an older checkpoint."""
    checkpoints: list[dict[str, Any]] = []
    done = 0
    while done < count:
        with SelectionClient(target, timeout_s=TIMEOUT_S) as client:
            loader = SelectingLoader(SuperBatches(), _ready(client), COUNT, start_step=0)
            done = checkpoints[-1]["step"] if checkpoints else 0
            if checkpoints:
                tally.restarts += 1
                loader.load_state_dict(checkpoints[-1])
            for _ in loader:
                assert loader.last_selection is not None
                yield _answer(loader.last_selection)
                checkpoints.append(loader.state_dict())
                done += 1
                if done == count:
                    break
                if kill():
                    del checkpoints[-_BACK:]
                    break


def _answers(served: Served, order: str, count: int, every: int | None, tally: Tally) -> Iterator[Answer]:
    kill = Killer(served, every, tally)
    if order == "as they come":
        return _by_loader(served.target, count, kill, tally)
    steps = list(range(count))[::-1]
    if order == "shuffled":
        random.Random(3).shuffle(steps)
    return _in_order(served.target, steps, kill)


def _compare(
    layout: Layout, count: int, every: int, expected: Mapping[int, bytes], tally: Tally, console: Console
) -> None:
    with serve(layout.scorers, pool=layout.pool, max_chunk_bytes=layout.chunk_bytes, answer_cache_bytes=0) as served:
        for order in ORDERS:
            for is_killed in (False, True):
                began = time.monotonic()
                given: set[int] = set()
                for step, answer in _answers(served, order, count, every if is_killed else None, tally):
                    given.add(step)
                    tally.answers += 1
                    tally.different += answer != expected[step]
                tally.different += len(expected.keys() - given)
                what = f"{layout.name}, {order}, {'killed' if is_killed else 'undisturbed'}"
                tally.seconds[what] = time.monotonic() - began
                console.print(f"  {what}: {len(given)} super-batches in {tally.seconds[what]:.0f} s")


def run(short: bool, count: int | None = None, layouts: Sequence[Layout] | None = None) -> Measured:
    """Runs the proof, the short form without Ray."""
    count = count or (30 if short else 1000)
    layouts = layouts or ((IN_PROCESS,) if short else (IN_PROCESS, *ON_RAY))
    every = max(20, count // 5)
    console, tally = Console(), Tally()
    with serve(1, pool="in-process", max_chunk_bytes=REFERENCE.chunk_bytes) as served:
        undisturbed = Killer(served, None, tally)
        expected = dict(_in_order(served.target, range(count), undisturbed))
    for layout in layouts:
        _compare(layout, count, every, expected, tally, console)
    figures = [
        Figure("super-batches answered", tally.answers, ""),
        Figure("answers that differ from the undisturbed one, or are missing", tally.different, "", 0),
        Figure("processes killed", tally.kills, ""),
        Figure("trainers that went on from a checkpoint", tally.restarts, ""),
    ]
    return figures, {"super_batches": count, "seconds": tally.seconds}
