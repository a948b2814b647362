"""Tasks: what the examples of a run are, and which loss per example scores them.

The gateway reads the columns, the scorers compute the losses. Importing this needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from preceptor.errors import InvalidRunError
from preceptor_service.columns import ColumnSpec

if TYPE_CHECKING:
    import torch


Columns = tuple[ColumnSpec, ...]
"""What a super-batch of one run must hold, in order: the model's inputs, then the columns of the task."""


class Task(Protocol):
    """Columns and loss of one kind of example."""

    def columns(self, module: torch.nn.Module) -> Columns:
        """Returns what a super-batch for `module` must hold.

        Raises:
            InvalidRunError: the module is not one for this task.
        """
        ...

    def loss(self, module: torch.nn.Module, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the loss per example, float32 `[N]`, of the columns in `features`, each `[N, ...]`."""
        ...


class Classification:
    """Inputs and an int64 `label` in [0, num_classes); the loss is the softmax cross-entropy in float32.

    Source: Evans et al., arXiv 2312.05328 (ClassAct): scoring loss = update loss = cross-entropy.
    """

    label = "label"

    def columns(self, module: torch.nn.Module) -> Columns:
        """Returns the inputs of `module`, then `label`."""
        num_classes = getattr(module, "num_classes", None)
        if not isinstance(num_classes, int):
            raise InvalidRunError(
                f"model {type(module).__name__} has no num_classes; task 'classification' needs an image classifier"
            )
        return (*_input_columns(module), ColumnSpec(self.label, "int64", below=num_classes))

    def loss(self, module: torch.nn.Module, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns −log softmax(module(inputs))[label], float32 `[N]`."""
        from torch.nn.functional import cross_entropy

        logits = module(**{column.name: features[column.name] for column in _input_columns(module)})
        return cross_entropy(logits.float(), features[self.label], reduction="none")


TASKS: Mapping[str, Task] = {"classification": Classification()}
"""Every task by the name that a `RunSpec` gives it."""


def task_named(name: str) -> Task:
    """Returns the task.

    Raises:
        InvalidRunError: there is no such task.
    """
    task = TASKS.get(name)
    if task is None:
        raise InvalidRunError(f"task is {name!r}; choose one of {sorted(TASKS)}")
    return task


def run_columns(task: str, outline: torch.nn.Module) -> Columns:
    """Returns what a super-batch must look like for a model, after a trial run that computes shapes only.

    Args:
        task: name of the task.
        outline: the model on torch's meta device, as `ArchitectureRegistry.outline` builds it. Its
            mode is set to eval.

    Raises:
        InvalidRunError: unknown task, a model of another task, or one that cannot take such inputs.
    """
    import torch

    chosen = task_named(task)
    columns = chosen.columns(outline)
    rows = 2
    features = {
        column.name: torch.from_numpy(np.empty((0, *column.shape), column.dtype)).new_empty(
            (rows, *column.shape), device="meta"
        )
        for column in columns
    }
    try:
        with torch.inference_mode():
            losses = chosen.loss(outline.eval(), features)
    except NotImplementedError:
        return columns  # an operator that has no shape rule; the first real forward pass will tell
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise InvalidRunError(
            f"a {type(outline).__name__} with these settings cannot take {_described(columns)}: {error}"
        ) from error
    if losses.shape != (rows,):
        raise InvalidRunError(
            f"a {type(outline).__name__} with these settings gives losses of shape {tuple(losses.shape)} "
            f"for {rows} examples; it must be one per example"
        )
    return columns


def _input_columns(module: torch.nn.Module) -> tuple[ColumnSpec, ...]:
    columns = getattr(module, "input_columns", None)
    if not isinstance(columns, tuple) or not all(isinstance(column, ColumnSpec) for column in columns):
        raise InvalidRunError(
            f"model {type(module).__name__} has no input_columns; an architecture sets them to a tuple of ColumnSpec"
        )
    return columns


def _described(columns: Columns) -> str:
    return ", ".join(f"{column.name} {column.element_type}{list(column.shape)}" for column in columns)
