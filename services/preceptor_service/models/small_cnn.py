"""`small_cnn`: the small convolutional classifier, a proxy that scores quickly on a CPU too."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from preceptor_service.models.images import Channels, ImageInput, ImageSize, InputType, NumClasses, PerChannel


class SmallCnn(nn.Module):
    """Three 3×3 convolutions of width w, 2w and 4w with ReLU, max-pooling between them, mean over positions, linear.

    53 thousand parameters at width 24 and 835 thousand at width 96, for one channel and ten classes.
    Without batch normalisation: the loss of an example depends on nothing but itself. The state dict
    holds `conv1`, `conv2`, `conv3` and `head`, each `.weight` and `.bias`.
    """

    def __init__(self, image_input: ImageInput, num_classes: int, width: int) -> None:
        super().__init__()
        self.input_columns = (image_input.column,)
        self.num_classes = num_classes
        self.image_input = image_input
        self.conv1 = nn.Conv2d(image_input.column.shape[0], width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, padding=1)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns the logits `[N, num_classes]` of images `[N, C, H, W]`."""
        features = self.image_input(image)
        features = nn.functional.max_pool2d(self.conv1(features).relu(), 2)
        features = nn.functional.max_pool2d(self.conv2(features).relu(), 2)
        features = self.conv3(features).relu().mean((2, 3))
        logits: torch.Tensor = self.head(features)
        return logits


def small_cnn(
    *,
    in_channels: Channels,
    image_size: Annotated[ImageSize, Field(ge=4)],
    num_classes: NumClasses,
    width: Annotated[int, Field(ge=1, le=4096)] = 32,
    input_dtype: InputType = "uint8",
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
) -> nn.Module:
    """Returns an untrained `SmallCnn` for square images.

    Args:
        in_channels: channels of an image.
        image_size: height and width in pixels.
        num_classes: labels.
        width: channels of the first convolution.
        input_dtype: `"uint8"`, scaled to [0, 1] and normalised here, or `"float32"`, used as it is.
        mean: subtracted from uint8 images after scaling, one number or one per channel.
        std: what the difference is divided by, likewise.
    """
    return SmallCnn(ImageInput(in_channels, image_size, input_dtype, mean, std), num_classes, width)
