"""`train_reference`: from a data set to a reference with its card, or to where it goes on. Called by the command."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from preceptor_service.loss_identity import preprocessing_of
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.reference.dataset import Dataset
from preceptor_service.reference.errors import JobError
from preceptor_service.reference.objectives import Objective, objective_of, refuse_examples_without_loss
from preceptor_service.reference.output import Output
from preceptor_service.reference.training import Recipe, Training, parted, repeatable
from preceptor_service.tasks import run_columns, task_named
from preceptor_service.tasks.task import Columns
from preceptor_service.tasks.trial import forward_flops

_BACKWARD_AND_FORWARD = 3  # a backward pass takes two forward passes' operations


@dataclass(frozen=True)
class Model:
    """What is trained: a task and a model of the registry with its settings; `contrast` counts for image_text."""

    task: str
    name: str
    config: Mapping[str, Any]
    contrast: str = "softmax"


Watcher = Callable[[Training, float | None], None]
"""Told once before the first update of this process, with no loss, and after each update with its loss."""


def columns_of(model: Model, registry: ArchitectureRegistry) -> Columns:
    """Returns what the data must hold.

    Raises:
        InvalidRunError: unknown task, model or setting, or a model of another task.
    """
    return run_columns(model.task, registry.outline(model.name, model.config))


def train_reference(
    model: Model,
    recipe: Recipe,
    data: Dataset,
    directory: Path,
    registry: ArchitectureRegistry,
    device: Literal["auto", "cpu", "cuda"],
    checkpoint_interval_s: float,
    is_stopped: Callable[[], bool],
    watch: Watcher,
    fold: int | None = None,
) -> dict[str, Any] | None:
    """Trains a reference into `directory`, from the last checkpoint there if there is one, and returns its card.

    The same model, recipe and data give the same weights bit for bit on the same machine with the same number of
    threads, however often it was stopped or killed. A finished training is not repeated: its card is returned.

    Args:
        model: what is trained.
        recipe: how.
        data: as `columns_of` says.
        directory: for weights, card, and meanwhile the checkpoint.
        registry: of architectures.
        device: `"auto"` takes a GPU where there is one.
        checkpoint_interval_s: time between two checkpoints; what a kill costs.
        is_stopped: asked after every update; True writes a checkpoint and leaves.
        watch: told how it goes.
        fold: the half of the data that `data` is, for the card; None where it is no half.

    Returns:
        the card; None where it was stopped.

    Raises:
        JobError: the data, the device or the directory does not fit; the training diverged.
        InvalidRunError: unknown task, model or setting.
    """
    objective = objective_of(model.task, model.contrast)
    columns = columns_of(model, registry)
    refuse_examples_without_loss(model.task, data)
    place = _device(device)
    of_fold = {} if fold is None else {"fold": fold}
    identity = _identity(model, recipe, data, place) | of_fold
    with Output(directory, identity) as output:
        card = output.card()
        if card is not None:
            return card
        train, hold_out = parted(data, recipe)
        with repeatable(place):
            module = registry.build(model.name, model.config, recipe.seed).to(place)
            training = Training(module, task_named(model.task), objective, recipe, train, hold_out, place)
            checkpoint = output.checkpoint()
            if checkpoint is not None:
                training.restore(*checkpoint)
            if not _trained(training, output, checkpoint_interval_s, is_stopped, watch):
                return None
        outline = registry.outline(model.name, model.config)
        flops = forward_flops(task_named(model.task), outline, columns)
        return output.finish(
            module,
            {
                "task": model.task,
                "model": model.name,
                "model_config": dict(model.config),
                "preprocessing": preprocessing_of(module, columns),
                "parameters": sum(parameter.numel() for parameter in module.parameters()),
                "data": {"digest": identity["data"], "rows": data.rows, "trained_on": train.rows} | of_fold,
                "training": {**asdict(recipe), "updates": training.updates, "device": place.type}
                | _training_flops(flops, training, recipe, train),
                "hold_out": _hold_out(training, objective, hold_out),
                "epochs": [asdict(epoch) for epoch in training.epochs],
                "versions": _versions(),
            },
        )


def _trained(
    training: Training, output: Output, interval_s: float, is_stopped: Callable[[], bool], watch: Watcher
) -> bool:
    """Makes the updates that are left; returns whether it came to the end."""
    output.save_checkpoint(training.tensors(), training.progress())
    saved = time.monotonic()
    watch(training, None)
    while training.done < training.updates:
        loss = training.update()
        watch(training, loss)
        stopped = is_stopped()
        if stopped or time.monotonic() - saved >= interval_s:
            output.save_checkpoint(training.tensors(), training.progress())
            saved = time.monotonic()
        if stopped:
            return False
    return True


def _identity(model: Model, recipe: Recipe, data: Dataset, device: torch.device) -> dict[str, Any]:
    contrast = {"contrast": model.contrast} if model.task == "image_text" else {}
    return {
        "task": model.task,
        "model": model.name,
        "model_config": json.loads(json.dumps(dict(model.config), sort_keys=True)),
        **contrast,
        **asdict(recipe),
        "data": data.digest(),
        "device": device.type,
        "torch": torch.__version__,
    }


def _hold_out(training: Training, objective: Objective, hold_out: Dataset) -> dict[str, Any]:
    last = training.epochs[-1]
    return {
        "rows": hold_out.rows,
        "loss": last.hold_out_loss,
        "accuracy": last.hold_out_accuracy,
        "accuracy_of": objective.accuracy_of,
    }


def _training_flops(flops: int | None, training: Training, recipe: Recipe, train: Dataset) -> dict[str, int | None]:
    rows = training.updates * min(recipe.batch_rows, train.rows)
    return {"flops": None if flops is None else _BACKWARD_AND_FORWARD * flops * rows}


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in ("numpy", "preceptor", "torch")}}


def _device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise JobError("--device is 'cuda', and torch finds no GPU here; choose auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
