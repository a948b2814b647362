"""RHO-LOSS's rule, written down once more, in torch and without anything of the service: what it is compared with."""

from __future__ import annotations

import torch
from torch import nn


def irreducible_losses(holdout_model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the loss of each example under a model that was trained on held-out data, float32 `[N]`."""
    with torch.no_grad():
        return _losses(holdout_model, images, labels)


def selected(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, irreducible: torch.Tensor, count: int
) -> torch.Tensor:
    """Returns the `count` points of a large batch with the largest reducible hold-out loss, largest first: int64.

    L[y | x; D_t] − L[y | x; D_ho].

    Source: Mindermann et al., ICML 2022, Algorithm 1, lines 6 to 8.
    """
    with torch.no_grad():
        reducible = _losses(model, images, labels) - irreducible
    return torch.sort(reducible, descending=True, stable=True).indices[:count]


def _losses(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(images)
    return torch.logsumexp(logits, dim=1) - logits[torch.arange(len(labels)), labels]
