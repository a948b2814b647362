"""A load that looks like work: trainers that select and push, and one that gets everything wrong now and then."""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from preceptor import CoTraining, Run, RunSpec, Selection, SelectionClient
from preceptor.errors import PreceptorError
from preceptor_service.models import ArchitectureRegistry

MAX_STALENESS_STEPS = 60
DISTINCT = 16
_ANSWER_S = 30.0
_JOIN_S = 60.0


@dataclass(frozen=True)
class Trainer:
    """One rank of a run and how it goes about it; rank 0 pushes. The run pays, unless `settings` say otherwise.

    Where they say `co_training`, the service trains the learner copy, and only the reference is pushed.
    """

    run_id: str
    rank: int = 0
    rows: int = 64
    sub_batch_size: int = 16
    at_once: int = 2
    push_every: int = 20
    pause_s: float = 0.2
    width: int = 24
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def is_co_trained(self) -> bool:
        return "co_training" in self.settings

    def spec(self) -> RunSpec:
        fixed: dict[str, Any] = {
            "model": "small_cnn",
            "model_config": model_config(self.width),
            "max_staleness_steps": MAX_STALENESS_STEPS,
            "learner_flops": 2e5 * self.width**2,
        }
        return RunSpec(run_id=self.run_id, **{**fixed, **self.settings})


PUPILS = Trainer(
    "pupils", settings={"max_staleness_steps": None, "co_training": CoTraining(publish_every=5, lag=1, first_step=1)}
)
"""Pushes no learner: the service trains its online model."""


class Trainers:
    """Trainers at work, a thread each, until the end of `working`. `may_push` can be cleared and set again."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.may_push = threading.Event()
        self.may_push.set()
        self.failures: list[PreceptorError] = []
        self._threads: list[threading.Thread] = []
        self._steps: defaultdict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))

    @contextmanager
    def working(self) -> Iterator[Trainers]:
        try:
            yield self
        finally:
            self.stop()

    def stop(self) -> None:
        """Lets them finish what they wait for. Safe to call twice."""
        self.stopped.set()
        for thread in self._threads:
            thread.join(_JOIN_S)

    def start(self, client: SelectionClient, trainer: Trainer) -> Run:
        """Sets a trainer to work on its run; rank 0 pushes the first weights."""
        run = client.create_run(trainer.spec())
        if trainer.rank == 0:
            run.push_reference(weights(0, trainer.width))
            if not trainer.is_co_trained:
                run.push_weights(weights(1, trainer.width), step=0)
        self._begin(lambda: self._train(run, trainer))
        return run

    def start_clumsy(self, client: SelectionClient) -> None:
        """Sets a trainer to work that makes a mistake of each kind, and then goes on without."""
        settings = {"score": "hard_learner", "max_staleness_steps": None}
        run = client.create_run(Trainer("clumsy", settings=settings).spec())
        run.push_weights(weights(1), step=100)
        self._begin(lambda: self._blunder(client, run))

    def _train(self, run: Run, trainer: Trainer) -> None:
        steps = self._steps[trainer.run_id]  # its ranks go on together
        while not self.stopped.is_set():
            answers = [self._offer(run, trainer, next(steps)) for _ in range(trainer.at_once)]
            for answer in answers:
                answer.result(_ANSWER_S)
            if run.spec.memory_bank is not None:
                self._run_ahead(run, trainer, next(steps))
            self.stopped.wait(trainer.pause_s)

    def _offer(self, run: Run, trainer: Trainer, step: int) -> Future[Selection]:
        pushes = trainer.rank == 0 and not trainer.is_co_trained
        if pushes and step % trainer.push_every == 0 and self.may_push.is_set():
            run.push_weights(weights(step, trainer.width), step=step)
        number, rows = step % DISTINCT, trainer.rows
        ids = example_ids(number, rows) if "reference_losses" in trainer.settings else None
        candidates = super_batch(number, rows)
        return run.submit(candidates, trainer.sub_batch_size, step=step, rank=trainer.rank, example_id=ids)

    def _run_ahead(self, run: Run, trainer: Trainer, step: int) -> None:
        number = step % DISTINCT
        ids = example_ids(number, trainer.rows)
        run.remember(super_batch(number, trainer.rows), ids, step=step, rank=trainer.rank)
        run.sample(trainer.sub_batch_size, step=step, rank=trainer.rank)

    def _blunder(self, client: SelectionClient, run: Run) -> None:
        mistakes: list[Callable[[], object]] = [
            lambda: run.select(super_batch(0, 8), sub_batch_size=9, step=101),
            lambda: run.push_weights(weights(2), step=1),
            lambda: client.get_run("nobody"),
            lambda: client.create_run(Trainer("one-too-many").spec()),
        ]
        for mistake in mistakes:
            with suppress(PreceptorError):
                mistake()
        for step in itertools.count(102):
            run.select(super_batch(0, 8), sub_batch_size=2, step=step)
            if self.stopped.wait(1):
                return

    def _begin(self, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except PreceptorError as error:  # the service went away, perhaps because the test took it away
                self.failures.append(error)

        self._threads.append(threading.Thread(target=guarded, name="trainer", daemon=True))
        self._threads[-1].start()


def model_config(width: int) -> dict[str, Any]:
    """A small CNN for `super_batch`; what a forward pass takes grows with the square of `width`."""
    return {"in_channels": 1, "image_size": 16, "num_classes": 10, "width": width}


def weights(seed: int, width: int = 24) -> dict[str, torch.Tensor]:
    """A state dict that depends on `seed` and `width` alone."""
    generator = torch.Generator().manual_seed(seed)
    outline = ArchitectureRegistry().outline("small_cnn", model_config(width)).state_dict()
    return {name: torch.randn(tensor.shape, generator=generator) * 0.5 for name, tensor in outline.items()}


def example_ids(number: int, rows: int) -> NDArray[np.int64]:
    """The ids of the candidates of `super_batch(number, rows)`."""
    return np.arange(number * rows, (number + 1) * rows)


@cache
def super_batch(number: int, rows: int) -> dict[str, Any]:
    """Candidates that depend on `number` alone."""
    random = np.random.default_rng(number)
    return {
        "image": random.integers(0, 256, (rows, 1, 16, 16), dtype=np.uint8),
        "label": random.integers(0, 10, rows, dtype=np.int64),
    }
