"""`trial_losses`: a forward pass without values, to see whether a model takes what its task sends. Needs torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from preceptor_service.tasks.task import Columns, Task


def trial_losses(task: Task, outline: torch.nn.Module, columns: Columns, rows: int) -> torch.Tensor:
    """Returns the losses of `rows` examples on torch's meta device: a shape, and no values.

    Where the model asks for a value of a tensor, e.g. whether a mask is 1 throughout, it is told 0.

    Raises:
        Exception: whatever the model or the task raises.
    """
    features = {
        column.name: torch.from_numpy(np.empty((0, *column.shape), column.dtype)).new_empty(
            (rows, *column.shape), device="meta"
        )
        for column in columns
    }
    with torch.inference_mode(), _ZeroForEveryValue():  # type: ignore[no-untyped-call]
        return task.loss(outline.eval(), features)


def forward_flops(task: Task, outline: torch.nn.Module, columns: Columns) -> int | None:
    """Returns the floating-point operations of one forward pass of one example, counted without computing it.

    A multiplication and an addition are two. None where the model has an operator without a shape rule.
    """
    with FlopCounterMode(display=False) as counter:
        try:
            trial_losses(task, outline, columns, rows=1)
        except NotImplementedError:
            return None
    return int(counter.get_total_flops())


# Which of these a question comes as depends on how it is asked, and on inference mode.
_ASK_FOR_A_VALUE = frozenset(
    {
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.item.default,
        torch.ops.aten.is_nonzero.default,
    }
)


class _ZeroForEveryValue(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _ASK_FOR_A_VALUE and args[0].is_meta:
            return args[0].new_zeros((), device="cpu").item()
        return func(*args, **(kwargs or {}))
