"""`Task`: the protocol that every task follows. Called by the tasks and their registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

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
        """Returns the loss per example, float32 `[N]`, of the columns in `features`, each `[N, ...]`.

        An example that has no loss gets NaN: its score is then left out of the selection and counted. The loss
        of an example depends on nothing but itself and the module.

        Raises:
            TypeError, ValueError: the module gave something else than its task asks for.
        """
        ...


@runtime_checkable
class GradientTask(Task, Protocol):
    """A task whose model has a last layer that the loss is a softmax of."""

    def gradient_norm(self, module: torch.nn.Module, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the norm of each loss' gradient with respect to that layer's outputs, float32 `[N]`.

        NaN where the example has no loss. Arguments and errors as `loss`.
        """
        ...


def input_columns(module: torch.nn.Module) -> Columns:
    """Returns what `module` reads, as its architecture says.

    Raises:
        InvalidRunError: the architecture does not say.
    """
    columns = getattr(module, "input_columns", None)
    if not isinstance(columns, tuple) or not all(isinstance(column, ColumnSpec) for column in columns):
        raise InvalidRunError(
            f"model {type(module).__name__} has no input_columns; an architecture sets them to a tuple of ColumnSpec"
        )
    return columns


def input_columns_named(module: torch.nn.Module, names: tuple[str, ...], needs: str) -> Columns:
    """Returns what `module` reads where these are exactly the columns `names`.

    Args:
        module: the model.
        names: of the columns, in order.
        needs: which task needs what, for the error.

    Raises:
        InvalidRunError: the module reads other columns.
    """
    columns = input_columns(module)
    found = tuple(column.name for column in columns)
    if found != names:
        raise InvalidRunError(f"model {type(module).__name__} reads {list(found)}; {needs} that reads {list(names)}")
    return columns
