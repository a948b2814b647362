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
    with torch.no_grad():
        hidden = torch.tensor(images).float() / 255
        for name, pooled in (("conv1", True), ("conv2", True), ("conv3", False)):
            hidden = functional.conv2d(hidden, state[f"{name}.weight"], state[f"{name}.bias"], padding=1).clamp(min=0)
            hidden = functional.max_pool2d(hidden, 2) if pooled else hidden
        logits = hidden.mean(dim=(-1, -2)) @ state["head.weight"].T + state["head.bias"]
        chosen = logits[torch.arange(len(labels)), torch.tensor(labels)]
        return [float(loss) for loss in torch.logsumexp(logits, 1) - chosen]
