"""`image_classifier`: any image-classification architecture of Hugging Face transformers, from its config alone.

Nothing is downloaded. Needs the extra `preceptor[transformers]`; it is imported at the first use.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from preceptor.errors import InvalidRunError
from preceptor_service.models.images import Channels, ImageInput, ImageSize, InputType, NumClasses, PerChannel

Setting = bool | int | float | str | Sequence[int] | Sequence[float]

MAX_LAYERS = 256
MAX_NUMBER = 16_384
MAX_LIST_LENGTH = 64

# These read other inputs than one image, give no logits, or fetch code or weights from elsewhere.
_REFUSED_TYPES = frozenset({"imagegpt", "perceiver", "pp_lcnet", "shieldgemma2", "siglip2", "timm_wrapper"})
# These choose code, precision, files or another network, none of which a client may do.
_REFUSED_SETTINGS = re.compile(
    r"_.*|.*(backbone|timm|pretrained|auto_map|trust_remote|dtype|quant|implementation|path|url|revision|version).*"
)
# These follow from our own settings.
_SET_BY_US = {"image_size": "image_size", "num_channels": "in_channels", "num_labels": "num_classes"}
_COUNTS_LAYERS = re.compile(r".*(layers|blocks|repeats)|.*depth.*")
# Transformers swaps functions of torch.nn.init for its own while it builds, for all threads.
_building = threading.Lock()
_PLAIN_WORD = re.compile(r"[a-z0-9][a-z0-9_]{0,63}")


class ImageClassifier(nn.Module):
    """An image-classification model of transformers that reads `image` and gives logits.

    Its state dict has the names of the bare model, so that a trainer pushes `model.state_dict()` as it is.
    """

    def __init__(self, model: nn.Module, image_input: ImageInput, num_classes: int) -> None:
        super().__init__()
        self.input_columns = (image_input.column,)
        self.num_classes = num_classes
        self.image_input = image_input
        self.model = model
        self.register_state_dict_post_hook(_without_prefix)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_prefix)  # type: ignore[no-untyped-call]

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
        InvalidRunError: transformers is not installed; unknown architecture or setting; value of
            another type than the setting's default, or beyond the limits above.
    """
    transformers = _transformers()
    types = _model_types()
    if model_type not in types:
        raise InvalidRunError(f"model_type is {model_type!r}; transformers builds these from a config: {types}")
    default = transformers.AutoConfig.for_model(model_type)
    has_vision_config = hasattr(default, "vision_config")
    vision = default.vision_config if has_vision_config else default
    _check_settings(model_type, _defaults(transformers, vision), settings)
    plain: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()
    }
    for name, value in {
        "image_size": image_size,
        "num_channels": in_channels,
        "stem_num_channels": in_channels,
    }.items():
        if hasattr(vision, name):
            plain[name] = [value, value] if isinstance(getattr(vision, name), list | tuple) else value
    if has_vision_config:
        plain = {"vision_config": plain}
    config = transformers.AutoConfig.for_model(model_type, **plain, num_labels=num_classes)
    config.architectures = []  # none: the auto class picks its first, also where a type has several
    with _building:
        model: nn.Module = transformers.AutoModelForImageClassification.from_config(config)
    return ImageClassifier(model, ImageInput(in_channels, image_size, input_dtype, mean, std), num_classes)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InvalidRunError(
            "it needs transformers, which this service does not have; install preceptor[transformers] there"
        ) from error
    return transformers


def _model_types() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    return sorted(set(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES) - _REFUSED_TYPES)


def _defaults(transformers: Any, config: Any) -> dict[str, Setting]:
    """Returns the settings that a client may change, each with its default."""
    of_every_config = set(transformers.PretrainedConfig().to_dict())
    return {
        name: value
        for name, value in config.to_dict().items()
        if name not in of_every_config
        and name not in _SET_BY_US
        and not _REFUSED_SETTINGS.fullmatch(name)
        and (isinstance(value, bool | int | float | str) or _is_number_list(value))
    }


def _check_settings(model_type: str, defaults: Mapping[str, Setting], settings: Mapping[str, Setting]) -> None:
    for name, value in settings.items():
        if name in _SET_BY_US:
            raise InvalidRunError(f"{name!r} follows from {_SET_BY_US[name]!r}; set that instead")
        if name not in defaults:
            raise InvalidRunError(f"{model_type!r} has no setting {name!r}; it takes {sorted(defaults)}")
        default = defaults[name]
        if _kind(value) != _kind(default):
            raise InvalidRunError(f"{name} is {value!r}, a {_kind(value)}; give a {_kind(default)}, like {default!r}")
        if isinstance(value, str):
            if not _PLAIN_WORD.fullmatch(value):
                raise InvalidRunError(f"{name} is {value[:80]!r}; give one word of a-z, 0-9 and _, like {default!r}")
            continue
        numbers = [value] if isinstance(value, int | float) else value
        if len(numbers) > MAX_LIST_LENGTH:
            raise InvalidRunError(f"{name} has {len(numbers)} values; the limit is {MAX_LIST_LENGTH}")
        if any(abs(number) > MAX_NUMBER for number in numbers):
            raise InvalidRunError(f"{name} is {value!r}; the limit is {MAX_NUMBER}")
        if _COUNTS_LAYERS.fullmatch(name) and sum(numbers) > MAX_LAYERS:
            raise InvalidRunError(f"{name} is {value!r}; the limit is {MAX_LAYERS} layers")


def _is_number_list(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, int | float) for item in value)


def _kind(value: Setting) -> str:
    if isinstance(value, bool):
        return "truth value"
    if isinstance(value, int | float):
        return "number"
    return "word" if isinstance(value, str) else "list of numbers"


def _without_prefix(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    _rename(state_dict, f"{prefix}model.", prefix)


def _with_prefix(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    _rename(state_dict, prefix, f"{prefix}model.")


def _rename(state_dict: dict[str, Any], old: str, new: str) -> None:
    for name in [name for name in state_dict if name.startswith(old)]:
        state_dict[new + name.removeprefix(old)] = state_dict.pop(name)
