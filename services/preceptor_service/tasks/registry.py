"""Every task by name, and the check of a run's model against its task. Called by the gateway and the scorers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from preceptor.errors import InvalidRunError
from preceptor.quoting import brief, quoted
from preceptor_service.tasks.causal_lm import CausalLm
from preceptor_service.tasks.classification import Classification
from preceptor_service.tasks.image_text import ImageText
from preceptor_service.tasks.task import Columns, Task

if TYPE_CHECKING:
    import torch

TASKS: Mapping[str, Task] = {"classification": Classification(), "image_text": ImageText(), "causal_lm": CausalLm()}
"""Every task by the name that a `RunSpec` gives it."""


def task_named(name: str) -> Task:
    """Returns the task.

    Raises:
        InvalidRunError: there is no such task.
    """
    task = TASKS.get(name)
    if task is None:
        raise InvalidRunError(f"task is {quoted(name)}; choose one of {sorted(TASKS)}")
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
    from preceptor_service.tasks.trial import trial_losses  # brings torch

    chosen = task_named(task)
    columns = chosen.columns(outline)
    rows = 2
    try:
        losses = trial_losses(chosen, outline, columns, rows)
    except NotImplementedError:
        return columns  # an operator that has no shape rule; the first real forward pass will tell
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError) as error:
        raise InvalidRunError(
            f"a {type(outline).__name__} with these settings cannot take {_described(columns)}: {brief(error)}"
        ) from error
    if losses.shape != (rows,):
        raise InvalidRunError(
            f"a {type(outline).__name__} with these settings gives losses of shape {tuple(losses.shape)} "
            f"for {rows} examples; it must be one per example"
        )
    return columns


def count_flops(task: str, outline: torch.nn.Module, columns: Columns) -> int | None:
    """Returns the floating-point operations of one forward pass of one example; None where they cannot be counted."""
    from preceptor_service.tasks.trial import forward_flops  # brings torch

    return forward_flops(task_named(task), outline, columns)


def _described(columns: Columns) -> str:
    return ", ".join(f"{column.name} {column.element_type}{list(column.shape)}" for column in columns)
