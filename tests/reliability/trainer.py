"""`python -m tests.reliability.trainer JSON`: one trainer with checkpoints, in a process that is killed now and then.

Started again, it goes on from its last checkpoint, as a training job does. It writes every answer to
`<folder>/<number>.jsonl`, and to its checkpoint the history of what it was trained on.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from preceptor import SelectionClient
from preceptor.errors import PreceptorError
from preceptor.torch import SelectingLoader
from tests.ray.candidates import COUNT, super_batch
from tests.reliability.reference_run import chained, settings_of
from tests.reliability.traffic import Step, answered, append

STEPS_PER_CHECKPOINT = 5


@dataclass(frozen=True)
class Trainer:
    """What one trainer is.

    Attributes:
        number, run_id, rank: who it is.
        target: the gateway.
        folder: where it writes.
        update_s: how long it trains on a sub-batch.
        steps: how many it takes; None: until it is told to stop.
    """

    number: int
    run_id: str
    rank: int
    target: str
    folder: str
    update_s: float
    steps: int | None = None

    @property
    def answers(self) -> Path:
        """Every answer that it ever got, as `traffic.read` reads them."""
        return Path(self.folder) / f"{self.number}.jsonl"

    @property
    def checkpoint(self) -> Path:
        """What it goes on from: `loader`, `trained` steps and their `history`."""
        return Path(self.folder) / f"{self.number}.checkpoint"

    @property
    def command(self) -> list[str]:
        """What runs it."""
        return [sys.executable, "-m", "tests.reliability.trainer", json.dumps(asdict(self))]


class SuperBatches:
    """Super-batches without end, from any of them on."""

    def __init__(self) -> None:
        self._next = 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            batch = super_batch(self._next)
            self._next += 1
            yield {name: torch.from_numpy(values) for name, values in batch.items()}

    def state_dict(self) -> dict[str, int]:
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._next = state["next"]


def train(trainer: Trainer, client: SelectionClient, stop: threading.Event) -> None:
    """Trains from the last checkpoint on, with the time-outs that the client has by default.

    Raises:
        PreceptorError: a selection failed.
    """
    loader = SelectingLoader(
        SuperBatches(),
        client.create_run(settings_of(trainer.run_id)),
        COUNT,
        start_step=0,
        rank=trainer.rank,
    )
    state: dict[str, Any] = {"loader": None, "trained": 0, "history": ""}
    if trainer.checkpoint.exists():
        state = json.loads(trainer.checkpoint.read_text())
        loader.load_state_dict(state["loader"])
    with trainer.answers.open("a") as file:
        began = time.monotonic()
        for _ in loader:
            assert loader.last_selection is not None
            answer = answered(trainer.number, loader.last_selection.step, began, loader.last_selection)
            append(file, answer)
            stop.wait(trainer.update_s)
            state["trained"] += 1
            state["history"] = chained(state["history"], str(answer.indices))
            is_last = stop.is_set() or state["trained"] == trainer.steps
            if is_last or state["trained"] % STEPS_PER_CHECKPOINT == 0:
                _save(trainer.checkpoint, {**state, "loader": loader.state_dict()})
            if is_last:
                return
            began = time.monotonic()


def _save(path: Path, state: dict[str, Any]) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(state))
    os.replace(new, path)


def main(trainer: Trainer) -> None:
    """Trains until it is told to stop by the end of its input; goes back to its checkpoint where a selection fails."""
    stop = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    torch.set_num_threads(1)
    with SelectionClient(trainer.target) as client:
        while not stop.is_set():
            began = time.monotonic()
            try:
                train(trainer, client, stop)
                return
            except PreceptorError as error:
                told = f"{type(error).__name__}: {error}"
                with trainer.answers.open("a") as file:
                    append(file, Step(trainer.number, -1, began, time.monotonic(), None, error=told))
                stop.wait(1)


if __name__ == "__main__":
    main(Trainer(**json.loads(sys.argv[1])))
