"""A score rule and an architecture that keep something of every super-batch: what the proof `memory` has to notice.

An operator's own functions, so the service that runs them is the one that ships: the rule leaks in gateways, the
architecture in scorers.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray
from torch import nn

from preceptor_service.models.small_cnn import small_cnn
from preceptor_service.scores import learnability

LEAK = "LEAK_BYTES"
"""The environment variable that says how much is kept of each."""
RULES = {"leaky_learnability": f"{__name__}:leaky_learnability"}
ARCHITECTURES = {"leaky_cnn": f"{__name__}:leaky_cnn"}

Losses = NDArray[np.float32]

_kept: list[bytes] = []


def leaky_learnability(learner_losses: Losses, reference_losses: Losses) -> Losses:
    """`learnability`, and a leak at each super-batch."""
    _leak()
    return learnability(learner_losses, reference_losses)


def leaky_cnn(*, in_channels: int, image_size: int, num_classes: int, width: int) -> nn.Module:
    """`small_cnn`, and a leak at each forward pass."""
    module = small_cnn(in_channels=in_channels, image_size=image_size, num_classes=num_classes, width=width)
    module.register_forward_hook(lambda *_: _leak())
    return module


def _leak() -> None:
    # Written to: memory that nobody touched is not resident.
    _kept.append(b"\xff" * int(os.environ.get(LEAK, "0")))
