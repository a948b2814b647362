"""`Training`: a reference under training, whose every update can be repeated. Called by `train_job.py`.

Update u of a training depends on its weights, its recipe and u alone: the order of an epoch comes from (seed, epoch),
dropout from (seed, u), the learning rate from u. So nothing but tensors and u has to be kept to go on after a kill.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from preceptor_service.reference.dataset import Dataset
from preceptor_service.reference.errors import JobError
from preceptor_service.reference.objectives import Objective
from preceptor_service.scoring.update_losses import Features
from preceptor_service.tasks import Task

_MODEL, _OBJECTIVE, _OPTIMISER = "model.", "objective.", "optimiser."


@dataclass(frozen=True)
class Recipe:
    """How a reference is trained: AdamW, the learning rate decayed to 0 over all updates by a half cosine.

    Attributes:
        epochs: times that every example is trained on; 1 or above.
        batch_rows: examples of one update; 1 or above. What is left of an epoch is left out.
        learning_rate: at the start; above 0.
        weight_decay: AdamW's; 0 or above.
        seed: of initial weights, hold-out, order and dropout; from 0 to 2⁶³ − 1.
        hold_out: share of the rows that is kept from training to measure on; from 0 to below 1.
    """

    epochs: int
    batch_rows: int
    learning_rate: float
    weight_decay: float
    seed: int
    hold_out: float

    def __post_init__(self) -> None:
        for name, value, is_right, rule in (
            ("--epochs", self.epochs, self.epochs >= 1, "1 or above"),
            ("--batch-rows", self.batch_rows, self.batch_rows >= 1, "1 or above"),
            ("--learning-rate", self.learning_rate, 0 < self.learning_rate < math.inf, "above 0, and finite"),
            ("--weight-decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or above, and finite"),
            ("--seed", self.seed, 0 <= self.seed < 1 << 63, "from 0 to 2⁶³ − 1"),
            ("--hold-out", self.hold_out, 0 <= self.hold_out < 1, "0 or above, and below 1"),
        ):
            if not is_right:
                raise JobError(f"{name} is {value}; it must be {rule}")


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: mean update loss, and on the hold-out the task's mean loss and the accuracy, if any."""

    epoch: int
    train_loss: float
    hold_out_loss: float | None
    hold_out_accuracy: float | None


def parted(data: Dataset, recipe: Recipe) -> tuple[Dataset, Dataset]:
    """Returns what is trained on and what is held out, drawn by the seed.

    Raises:
        JobError: too few rows for both.
    """
    held_out = math.ceil(data.rows * recipe.hold_out)
    if held_out >= data.rows:
        raise JobError(
            f"the data has {data.rows} rows, of which --hold-out {recipe.hold_out:g} keeps {held_out}; "
            "none is left to train on"
        )
    order = _random(recipe.seed, "hold-out").permutation(data.rows)
    return data.take(np.sort(order[held_out:])), data.take(np.sort(order[:held_out]))


class Training:
    """A model, its optimiser and how far it is. For one thread; call it within `repeatable`.

    Args:
        module: the untrained model, on its device.
        task: whose loss is measured on the hold-out.
        objective: what is minimised.
        recipe: how.
        train: what is trained on; not empty.
        hold_out: what is measured on after each epoch; may be empty.
        device: where the model is.

    Attributes:
        done: updates so far.
        updates: how many there will be.
        epochs: what each finished epoch came to.
    """

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        objective: Objective,
        recipe: Recipe,
        train: Dataset,
        hold_out: Dataset,
        device: torch.device,
    ) -> None:
        self.module, self._task, self._objective, self._recipe = module, task, objective, recipe
        self._train, self._hold_out, self._device = train, hold_out, device
        self._batch_rows = min(recipe.batch_rows, train.rows)
        self._per_epoch = train.rows // self._batch_rows
        self.updates = recipe.epochs * self._per_epoch
        self.done = 0
        self.epochs: list[Epoch] = []
        self._loss_sum = 0.0
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))
        parameters = [*module.parameters(), *objective.parameters().values()]
        self._optimiser = torch.optim.AdamW(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay)

    def update(self) -> float:
        """Makes the next update, and after the last one of an epoch measures; returns the update's loss.

        Raises:
            JobError: the loss is not finite.
        """
        epoch, place = divmod(self.done, self._per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, _random(self._recipe.seed, f"order {epoch}").permutation(self._train.rows)
        rows = self._order[1][place * self._batch_rows : (place + 1) * self._batch_rows]
        torch.manual_seed(_word(self._recipe.seed, f"update {self.done}"))  # dropout
        for group in self._optimiser.param_groups:
            group["lr"] = self._recipe.learning_rate * (1 + math.cos(math.pi * self.done / self.updates)) / 2
        self.module.train()
        self._optimiser.zero_grad()
        loss = self._objective.loss(self.module, self._features(self._train, rows))
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise JobError(
                f"the training loss is {value} at update {self.done + 1}; "
                f"lower --learning-rate, which is {self._recipe.learning_rate:g}"
            )
        self.done += 1
        self._loss_sum += value
        if place + 1 == self._per_epoch:
            self.epochs.append(Epoch(epoch + 1, self._loss_sum / self._per_epoch, *self._measured()))
            self._loss_sum = 0.0
        return value

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns everything that updates change, by name: copies, on the CPU."""
        found: dict[str, torch.Tensor] = {_MODEL + name: value for name, value in self.module.state_dict().items()}
        found |= {_OBJECTIVE + name: value for name, value in self._objective.parameters().items()}
        for index, values in self._optimiser.state_dict()["state"].items():
            found |= {f"{_OPTIMISER}{index}.{name}": value for name, value in values.items()}
        return {
            name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, value in found.items()
        }

    def progress(self) -> dict[str, Any]:
        """Returns how far it is, for JSON."""
        return {"done": self.done, "loss_sum": self._loss_sum, "epochs": [asdict(epoch) for epoch in self.epochs]}

    def restore(self, tensors: Mapping[str, torch.Tensor], progress: Mapping[str, Any]) -> None:
        """Goes to where `tensors` and `progress` were taken."""
        self.module.load_state_dict(_below(_MODEL, tensors))
        with torch.no_grad():
            for name, value in _below(_OBJECTIVE, tensors).items():
                self._objective.parameters()[name].copy_(value)
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in _below(_OPTIMISER, tensors).items():
            index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": state, "param_groups": groups})
        self.done, self._loss_sum = int(progress["done"]), float(progress["loss_sum"])
        self.epochs = [Epoch(**epoch) for epoch in progress["epochs"]]

    def _measured(self) -> tuple[float | None, float | None]:
        """Returns the task's mean loss and the accuracy on the hold-out, in eval mode."""
        if self._hold_out.rows == 0:
            return None, None
        self.module.eval()
        loss, hits, of = 0.0, 0, 0
        with torch.inference_mode():
            for start in range(0, self._hold_out.rows, self._batch_rows):
                rows = np.arange(start, min(start + self._batch_rows, self._hold_out.rows))
                features = self._features(self._hold_out, rows)
                loss += float(self._task.loss(self.module, features).double().sum())
                found = self._objective.hits(self.module, features)
                hits, of = hits + found[0], of + found[1]
        return loss / self._hold_out.rows, hits / of

    def _features(self, data: Dataset, rows: NDArray[np.int64]) -> Features:
        return {name: torch.from_numpy(values[rows]).to(self._device) for name, values in data.columns.items()}


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Within it torch takes algorithms that give the same bits every time, and its random state is ours.

    Raises:
        JobError: the model has an operation that the device cannot repeat.
    """
    # Read when cuBLAS starts; without it its results may differ from one call to the next.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
            yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise JobError(f"{device.type} cannot repeat this model bit for bit: {error}; try --device cpu") from error
    finally:
        torch.use_deterministic_algorithms(before)


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _word(seed: int, purpose: str) -> int:
    digest = hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _random(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng(_word(seed, purpose))
