"""The gradient of a cross-entropy with respect to its logits. Called by the tasks that have one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def cross_entropy_gradient_norm(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns ‖softmax(logits) − one_hot(labels)‖₂ of float32 logits `[N, C]` and int64 labels `[N]`: float32 `[N]`.

    Source: Katharopoulos & Fleuret, arXiv 1803.00942: this norm, times a factor that all examples share, bounds the
    norm of the gradient with respect to all weights.
    """
    # Subtracted before squaring: expanded, the square of a small difference of large numbers would be lost.
    gradient = logits.softmax(1).scatter_add(1, labels[:, None], logits.new_full((len(labels), 1), -1.0))
    norms: torch.Tensor = gradient.norm(dim=1)
    return norms
