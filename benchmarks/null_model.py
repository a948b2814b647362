"""Architectures that only benchmarks allow-list: a scorer that costs nothing, and weights that are mostly weight."""

from __future__ import annotations

import torch
from torch import nn

from preceptor_service.columns import ColumnSpec
from preceptor_service.models.small_cnn import small_cnn


class NullModel(nn.Module):
    """Reads images and gives the same logits to all of them."""

    def __init__(self, in_channels: int, image_size: int, num_classes: int) -> None:
        super().__init__()
        self.input_columns = (ColumnSpec("image", "uint8", (in_channels, image_size, image_size)),)
        self.num_classes = num_classes
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns zeros `[N, num_classes]`."""
        return self.nothing.new_zeros((len(image), self.num_classes))


def null_model(*, in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    """Returns a `NullModel`."""
    return NullModel(in_channels, image_size, num_classes)


def laden_cnn(*, in_channels: int, image_size: int, num_classes: int, width: int, cargo_bytes: int) -> nn.Module:
    """Returns a `small_cnn` that carries `cargo_bytes` of float32 parameters which no forward pass reads."""
    module = small_cnn(in_channels=in_channels, image_size=image_size, num_classes=num_classes, width=width)
    module.register_parameter("cargo", nn.Parameter(torch.zeros(cargo_bytes // 4)))
    return module


ARCHITECTURES = {"null": "benchmarks.null_model:null_model", "laden_cnn": "benchmarks.null_model:laden_cnn"}
"""What the config of a measured service allow-lists."""
