"""`Classification`: inputs with one label each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from preceptor.errors import InvalidRunError
from preceptor_service.columns import ColumnSpec
from preceptor_service.tasks.gradients import cross_entropy_gradient_norm
from preceptor_service.tasks.task import Columns, input_columns

if TYPE_CHECKING:
    import torch


class Classification:
    """Inputs and an int64 `label` in [0, num_classes); the loss is the softmax cross-entropy in float32.

    The module's `forward` gives logits `[N, num_classes]`, and it has `num_classes: int`.

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
        return (*input_columns(module), ColumnSpec(self.label, "int64", below=num_classes))

    def loss(self, module: torch.nn.Module, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns −log softmax(module(inputs))[label], float32 `[N]`."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(_logits(module, features), features[self.label], reduction="none")

    def gradient_norm(self, module: torch.nn.Module, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns ‖softmax(module(inputs)) − one_hot(label)‖₂, float32 `[N]`, from 0 to √2."""
        return cross_entropy_gradient_norm(_logits(module, features), features[self.label])


def _logits(module: torch.nn.Module, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
    logits: torch.Tensor = module(**{column.name: features[column.name] for column in input_columns(module)})
    return logits.float()
