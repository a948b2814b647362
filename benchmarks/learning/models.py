"""`strided_cnn`: the network of the image experiments, as an operator adds an architecture of their own."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from preceptor_service.models.images import ImageInput, NumClasses

ARCHITECTURES = {"strided_cnn": "benchmarks.learning.models:strided_cnn"}
"""What the service and the jobs are configured with."""

_MEAN, _STD = 0.286, 0.353
"""Of Fashion-MNIST's training pixels, scaled to [0, 1]."""


class StridedCnn(nn.Module):
    """Convolutions 4×4, 3×3 and 3×3 of width w, 2w and 4w with ReLU, the first two of stride 2; linear.

    A CPU spends most of a `small_cnn`'s time on its first layer, which a narrow proxy has as well; strides leave the
    time where the operations are. The linear layer sees every position: in few updates it learns far more than one
    that sees their mean.
    """

    def __init__(self, image_input: ImageInput, num_classes: int, width: int) -> None:
        super().__init__()
        _, height, breadth = image_input.column.shape
        self.input_columns = (image_input.column,)
        self.num_classes = num_classes
        self.image_input = image_input
        self.conv1 = nn.Conv2d(image_input.column.shape[0], width, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, padding=1)
        self.head = nn.Linear(4 * width * (height // 4) * (breadth // 4), num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns the logits `[N, num_classes]` of images `[N, C, H, W]`."""
        features = self.image_input(image)
        for convolution in (self.conv1, self.conv2, self.conv3):
            features = convolution(features).relu()
        logits: torch.Tensor = self.head(features.flatten(1))
        return logits


def strided_cnn(
    *,
    width: Annotated[int, Field(ge=1, le=1024)],
    num_classes: NumClasses = 10,
    image_size: Annotated[int, Field(ge=4, le=1024)] = 28,
) -> nn.Module:
    """Returns an untrained `StridedCnn` for square grey images of bytes.

    Args:
        width: channels of the first convolution.
        num_classes: labels.
        image_size: height and width in pixels.
    """
    return StridedCnn(ImageInput(1, image_size, "uint8", _MEAN, _STD), num_classes, width)
