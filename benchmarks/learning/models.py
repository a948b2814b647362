"""The networks of the image experiments, as an operator adds architectures of their own."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import gelu

from preceptor_service.columns import token_columns
from preceptor_service.models.images import ImageInput, NumClasses
from preceptor_service.models.transformers_config import ContextLength, VocabSize

ARCHITECTURES = {
    "strided_cnn": "benchmarks.learning.models:strided_cnn",
    "strided_dual_encoder": "benchmarks.learning.models:strided_dual_encoder",
}
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


class StridedDualEncoder(nn.Module):
    """The convolutions of `StridedCnn`, which tell what stands where, and the text tower of a `dual_encoder`."""

    def __init__(self, image_tower: StridedCnn, context_length: int, vocab_size: int, text_width: int) -> None:
        super().__init__()
        self.input_columns = (image_tower.image_input.column, *token_columns(context_length, vocab_size))
        self.image_tower = image_tower
        self.token_embedding = nn.Embedding(vocab_size, text_width)
        self.position_embedding = nn.Embedding(context_length, text_width)
        self.text_hidden = nn.Linear(text_width, text_width)
        self.text_head = nn.Linear(text_width, image_tower.head.out_features)

    def forward(
        self, image: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the embeddings `[N, embedding_dim]` of images `[N, C, H, W]` and of captions `[N, L]`."""
        words = gelu(self.text_hidden(self.token_embedding(input_ids) + self.position_embedding.weight))
        is_word = attention_mask.unsqueeze(2).to(words.dtype)
        return self.image_tower(image), self.text_head((words * is_word).sum(1) / is_word.sum(1))


def strided_dual_encoder(
    *,
    width: Annotated[int, Field(ge=1, le=1024)],
    vocab_size: VocabSize,
    context_length: ContextLength,
    text_width: Annotated[int, Field(ge=1, le=1024)] = 32,
    embedding_dim: Annotated[int, Field(ge=1, le=1024)] = 32,
    image_size: Annotated[int, Field(ge=4, le=1024)] = 28,
) -> nn.Module:
    """Returns an untrained `StridedDualEncoder` for square grey images of bytes.

    Args:
        width: channels of the first convolution.
        vocab_size: token ids lie in [0, vocab_size).
        context_length: tokens of a caption with its padding.
        text_width: of a token's embedding.
        embedding_dim: of the space that images and captions share.
        image_size: height and width in pixels.
    """
    image_tower = StridedCnn(ImageInput(1, image_size, "uint8", _MEAN, _STD), embedding_dim, width)
    return StridedDualEncoder(image_tower, context_length, vocab_size, text_width)
