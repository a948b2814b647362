"""Cross-entropy of a `small_cnn` state dict, one whole super-batch at once, without our modules."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional


def small_cnn_losses(
    state: Mapping[str, torch.Tensor], images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> list[float]:
    """Losses of uint8 images `[B, C, H, W]`."""
    return [float(loss) for loss in _losses(_logits(state, images), labels)]


def small_cnn_gradient_norms(
    state: Mapping[str, torch.Tensor], images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> list[float]:
    """Norms of each loss' gradient with respect to the logits, by automatic differentiation."""
    logits = _logits(state, images).requires_grad_()
    (gradients,) = torch.autograd.grad(_losses(logits, labels).sum(), logits)
    return [float(torch.sqrt((gradient**2).sum())) for gradient in gradients]


def _logits(state: Mapping[str, torch.Tensor], images: NDArray[np.uint8]) -> torch.Tensor:
    with torch.no_grad():
        hidden = torch.tensor(images).float() / 255
        for name, pooled in (("conv1", True), ("conv2", True), ("conv3", False)):
            hidden = functional.conv2d(hidden, state[f"{name}.weight"], state[f"{name}.bias"], padding=1).clamp(min=0)
            hidden = functional.max_pool2d(hidden, 2) if pooled else hidden
        return hidden.mean(dim=(-1, -2)) @ state["head.weight"].T + state["head.bias"]


def _losses(logits: torch.Tensor, labels: NDArray[np.int64]) -> torch.Tensor:
    return torch.logsumexp(logits, 1) - logits[torch.arange(len(labels)), torch.tensor(labels)]
