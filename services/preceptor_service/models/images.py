"""`ImageInput`: from the bytes that a trainer sends to what a network reads. Shared by the image architectures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from preceptor.errors import InvalidRunError
from preceptor_service.columns import ColumnSpec

InputType = Literal["uint8", "float32"]
Channels = Annotated[int, Field(ge=1, le=64)]
ImageSize = Annotated[int, Field(ge=1, le=4096)]
NumClasses = Annotated[int, Field(ge=1, le=1_000_000)]
PerChannel = float | Annotated[Sequence[float], Field(max_length=64)]


class ImageInput(nn.Module):
    """Images `[N, C, H, W]` → float32 of the same shape.

    uint8: (x / 255 − mean) / std per channel. float32: as it is. Nothing of it is in the state dict,
    so a trainer pushes its network's own tensors.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, channels: int, size: int, input_dtype: InputType, mean: PerChannel, std: PerChannel) -> None:
        super().__init__()
        self.input_dtype = input_dtype
        self.column = ColumnSpec("image", "uint8" if input_dtype == "uint8" else "float", (channels, size, size))
        means, stds = _per_channel("mean", mean, channels), _per_channel("std", std, channels)
        if min(stds) <= 0:
            raise InvalidRunError(f"std is {std}; every channel needs a value above 0")
        self.means, self.stds = means, stds  # also there where the buffers are on torch's meta device
        self.register_buffer("mean", torch.tensor(means).reshape(1, channels, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(stds).reshape(1, channels, 1, 1), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns the normalised images."""
        return image if self.input_dtype == "float32" else (image.float() / 255 - self.mean) / self.std


def _per_channel(name: str, value: PerChannel, channels: int) -> list[float]:
    values = [float(item) for item in value] if isinstance(value, Sequence) else [float(value)] * channels
    if len(values) != channels:
        raise InvalidRunError(
            f"{name} has {len(values)} values for {channels} channels; give one per channel or one number"
        )
    return values
