"""`dual_encoder`: a small image tower and a small text tower, a proxy that scores pairs quickly on a CPU too."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import gelu, max_pool2d

from preceptor_service.columns import token_columns
from preceptor_service.models.images import Channels, ImageInput, ImageSize, InputType, PerChannel
from preceptor_service.models.transformers_config import ContextLength, VocabSize

Width = Annotated[int, Field(ge=1, le=4096)]


class DualEncoder(nn.Module):
    """Images and captions to embeddings of one space.

    Image tower: three 3×3 convolutions of width w, 2w and 4w with ReLU, max-pooling between them, mean over
    positions, linear. Text tower: an embedding of each token plus one of its position, a linear layer with GELU,
    mean over the tokens that are not padding, linear; so a word counts by where it stands, but words do not see
    each other. Without batch normalisation: the loss of a pair depends on nothing but itself. The temperature and
    bias of a contrastive loss are the trainer's and not in here.
    """

    def __init__(
        self,
        image_input: ImageInput,
        context_length: int,
        vocab_size: int,
        width: int,
        text_width: int,
        embedding_dim: int,
    ) -> None:
        super().__init__()
        self.input_columns = (image_input.column, *token_columns(context_length, vocab_size))
        self.image_input = image_input
        self.conv1 = nn.Conv2d(image_input.column.shape[0], width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, padding=1)
        self.image_head = nn.Linear(4 * width, embedding_dim)
        self.token_embedding = nn.Embedding(vocab_size, text_width)
        self.position_embedding = nn.Embedding(context_length, text_width)
        self.text_hidden = nn.Linear(text_width, text_width)
        self.text_head = nn.Linear(text_width, embedding_dim)

    def forward(
        self, image: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns image and text embeddings, each `[N, embedding_dim]` and of any length; NaN for an empty caption.

        Args:
            image: `[N, C, H, W]`.
            input_ids: int64 `[N, L]`.
            attention_mask: `[N, L]`, 1 for a token, 0 for padding.
        """
        features = self.image_input(image)
        features = max_pool2d(self.conv1(features).relu(), 2)
        features = max_pool2d(self.conv2(features).relu(), 2)
        features = self.conv3(features).relu().mean((2, 3))

        words = gelu(self.text_hidden(self.token_embedding(input_ids) + self.position_embedding.weight))
        counts = attention_mask.unsqueeze(2).to(words.dtype)
        caption = (words * counts).sum(1) / counts.sum(1)
        return self.image_head(features), self.text_head(caption)


def dual_encoder(
    *,
    in_channels: Channels,
    image_size: Annotated[ImageSize, Field(ge=4)],
    vocab_size: VocabSize,
    context_length: ContextLength,
    width: Width = 32,
    text_width: Width = 64,
    embedding_dim: Width = 64,
    input_dtype: InputType = "uint8",
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
) -> nn.Module:
    """Returns an untrained `DualEncoder` for square images.

    Args:
        in_channels: channels of an image.
        image_size: height and width in pixels.
        vocab_size: token ids lie in [0, vocab_size).
        context_length: tokens of a caption with its padding.
        width: channels of the first convolution.
        text_width: of a token's embedding.
        embedding_dim: of the space that images and captions share.
        input_dtype: `"uint8"`, scaled to [0, 1] and normalised here, or `"float32"`, used as it is.
        mean: subtracted from uint8 images after scaling, one number or one per channel.
        std: what the difference is divided by, likewise.
    """
    image_input = ImageInput(in_channels, image_size, input_dtype, mean, std)
    return DualEncoder(image_input, context_length, vocab_size, width, text_width, embedding_dim)
