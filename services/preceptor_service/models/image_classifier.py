"""`image_classifier`: any image-classification architecture of Hugging Face transformers, from its config alone."""

from __future__ import annotations

import torch
from torch import nn

from preceptor.errors import InvalidRunError
from preceptor.quoting import quoted
from preceptor_service.models.images import Channels, ImageInput, ImageSize, InputType, NumClasses, PerChannel
from preceptor_service.models.transformers_config import (
    Setting,
    built,
    check_settings,
    plain,
    settable,
    transformers_module,
)
from preceptor_service.models.transformers_model import TransformersModel

# These read other inputs than one image, give no logits, or fetch code or weights from elsewhere.
_REFUSED_TYPES = frozenset({"imagegpt", "perceiver", "pp_lcnet", "shieldgemma2", "siglip2", "timm_wrapper"})
# These follow from our own settings.
_SET_BY_US = {"image_size": "image_size", "num_channels": "in_channels", "num_labels": "num_classes"}


class ImageClassifier(TransformersModel):
    """An image-classification model of transformers that reads `image` and gives logits."""

    def __init__(self, model: nn.Module, image_input: ImageInput, num_classes: int) -> None:
        super().__init__(model, (image_input.column,))
        self.num_classes = num_classes
        self.image_input = image_input

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns the logits `[N, num_classes]` of images `[N, C, H, W]`."""
        logits: torch.Tensor = self.model(pixel_values=self.image_input(image)).logits
        return logits


def image_classifier(
    *,
    model_type: str,
    in_channels: Channels = 3,
    image_size: ImageSize,
    num_classes: NumClasses,
    input_dtype: InputType = "uint8",
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    **settings: Setting,
) -> nn.Module:
    """Returns an untrained model of transformers for square images.

    Args:
        model_type: transformers' name of the architecture, e.g. `"vit"`, `"resnet"`, `"convnext"`.
        in_channels: channels of an image.
        image_size: height and width in pixels.
        num_classes: labels.
        input_dtype: `"uint8"`, scaled to [0, 1] and normalised here, or `"float32"`, used as it is.
        mean: subtracted from uint8 images after scaling, one number or one per channel.
        std: what the difference is divided by, likewise.
        settings: further numbers, switches and lists that the architecture's config knows, e.g.
            `hidden_size=192, num_hidden_layers=12`.

    Raises:
        InvalidRunError: transformers is not installed; unknown architecture; a setting as `check_settings` says.
    """
    transformers = transformers_module()
    types = _model_types()
    if model_type not in types:
        raise InvalidRunError(f"model_type is {quoted(model_type)}; transformers builds these from a config: {types}")
    default = transformers.AutoConfig.for_model(model_type)
    has_vision_config = hasattr(default, "vision_config")
    vision = default.vision_config if has_vision_config else default
    check_settings(model_type, settable(vision), _SET_BY_US, settings)
    values = plain(settings)
    for name, value in {
        "image_size": image_size,
        "num_channels": in_channels,
        "stem_num_channels": in_channels,
    }.items():
        if hasattr(vision, name):
            values[name] = [value, value] if isinstance(getattr(vision, name), list | tuple) else value
    if has_vision_config:
        values = {"vision_config": values}
    config = transformers.AutoConfig.for_model(model_type, **values, num_labels=num_classes)
    config.architectures = []  # none: the auto class picks its first, also where a type has several
    model = built(transformers.AutoModelForImageClassification, config)
    return ImageClassifier(model, ImageInput(in_channels, image_size, input_dtype, mean, std), num_classes)


def _model_types() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    return sorted(set(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES) - _REFUSED_TYPES)
