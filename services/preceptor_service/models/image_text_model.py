"""`image_text_model`: dual encoders of Hugging Face transformers, CLIP and SigLIP of any size, from a config alone."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from preceptor.errors import InvalidRunError
from preceptor_service.columns import token_columns
from preceptor_service.models.images import Channels, ImageInput, ImageSize, InputType, PerChannel
from preceptor_service.models.transformers_config import (
    ContextLength,
    Setting,
    VocabSize,
    built,
    check_settings,
    plain,
    settable,
    transformers_module,
)
from preceptor_service.models.transformers_model import TransformersModel

# These follow from our own settings.
_SET_BY_US = {
    "vision_image_size": "image_size",
    "vision_num_channels": "in_channels",
    "text_vocab_size": "vocab_size",
}


class ImageTextModel(TransformersModel):
    """A CLIP or SigLIP of transformers that reads images and captions and gives their embeddings."""

    def __init__(self, model: nn.Module, image_input: ImageInput, context_length: int, vocab_size: int) -> None:
        super().__init__(model, (image_input.column, *token_columns(context_length, vocab_size)))
        self.image_input = image_input

    def forward(
        self, image: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns image and text embeddings, each `[N, D]` and of length 1.

        Args:
            image: `[N, C, H, W]`.
            input_ids: int64 `[N, L]`.
            attention_mask: `[N, L]`, 1 for a token, 0 for padding.
        """
        output = self.model(pixel_values=self.image_input(image), input_ids=input_ids, attention_mask=attention_mask)
        return output.image_embeds, output.text_embeds


def image_text_model(
    *,
    model_type: Literal["clip", "siglip"],
    in_channels: Channels = 3,
    image_size: ImageSize,
    vocab_size: VocabSize,
    context_length: ContextLength | None = None,
    input_dtype: InputType = "uint8",
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    **settings: Setting,
) -> nn.Module:
    """Returns an untrained dual encoder of transformers for square images.

    SigLIP is usually trained without a mask: send 1 throughout then. CLIP reads a caption's embedding where its end
    token stands, so every caption needs one.

    Args:
        model_type: `"clip"` or `"siglip"`.
        in_channels: channels of an image.
        image_size: height and width in pixels.
        vocab_size: token ids lie in [0, vocab_size).
        context_length: tokens of a caption with its padding; default: as many as the text tower has positions.
        input_dtype: `"uint8"`, scaled to [0, 1] and normalised here, or `"float32"`, used as it is.
        mean: subtracted from uint8 images after scaling, one number or one per channel.
        std: what the difference is divided by, likewise.
        settings: further settings of the config: `text_…` those of its text tower, `vision_…` those of its image
            tower, e.g. `text_hidden_size=256, vision_patch_size=16`, and those of both as they are, e.g.
            `projection_dim=256`.

    Raises:
        InvalidRunError: transformers is not installed; a setting as `check_settings` says; captions longer than the
            text tower's positions; an end token outside the vocabulary.
    """
    auto = transformers_module()
    default = auto.AutoConfig.for_model(model_type)
    towers = {**settable(default.text_config, "text_"), **settable(default.vision_config, "vision_")}
    check_settings(model_type, {**settable(default), **towers}, _SET_BY_US, settings)
    both: dict[str, Any] = {
        name: value for name, value in plain(settings).items() if not name.startswith(("text_", "vision_"))
    }
    config = auto.AutoConfig.for_model(
        model_type,
        text_config={**plain(settings, "text_"), "vocab_size": vocab_size},
        vision_config={**plain(settings, "vision_"), "image_size": image_size, "num_channels": in_channels},
        **both,
    )
    text = config.text_config
    if model_type == "clip" and text.eos_token_id >= vocab_size:
        raise InvalidRunError(
            f"text_eos_token_id is {text.eos_token_id}, vocab_size is {vocab_size}; set text_eos_token_id to the id of "
            "the token that ends a caption"
        )
    length = text.max_position_embeddings if context_length is None else context_length
    if length > text.max_position_embeddings:
        raise InvalidRunError(
            f"context_length is {length}, the text tower has {text.max_position_embeddings} positions; shorten the "
            "captions or raise text_max_position_embeddings"
        )
    image_input = ImageInput(in_channels, image_size, input_dtype, mean, std)
    return ImageTextModel(built(auto.AutoModel, config), image_input, length, vocab_size)
