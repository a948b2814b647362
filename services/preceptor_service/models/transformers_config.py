"""Configs of Hugging Face transformers from a client's settings. Shared by the architectures of transformers.

Nothing is downloaded. Needs the extra `preceptor[transformers]`; it is imported at the first use. Numbers, words,
switches and lists pass, each against the default that it replaces; what chooses code, precision or files does not.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from preceptor.errors import InvalidRunError
from preceptor.quoting import quoted

Setting = bool | int | float | str | Sequence[int] | Sequence[float]
VocabSize = Annotated[int, Field(ge=2, le=1_000_000)]
ContextLength = Annotated[int, Field(ge=1, le=65_536)]

MAX_LAYERS = 256
MAX_NUMBER = 16_384
MAX_LIST_LENGTH = 64

# These choose code, precision, files, another network or what is kept beside the result; none of it is a client's.
_REFUSED_SETTINGS = re.compile(
    r"_.*|.*(backbone|timm|pretrained|auto_map|trust_remote|dtype|quant|implementation|path|url|revision|version|"
    r"use_cache).*"
)
_COUNTS_LAYERS = re.compile(r".*(layers?|blocks|repeats)|.*depth.*")
# Where a default may lie above `MAX_NUMBER`: ids and positions of tokens, wavelengths, widths of large models.
_WIDE_SETTINGS = re.compile(r".*(_token_id|position.*|_ctx|theta.*|intermediate_size|_dim|_inner)")
_MAX_WIDE = 10_000_000
_PLAIN_WORD = re.compile(r"[a-z0-9][a-z0-9_]{0,63}")
# Transformers swaps functions of torch.nn.init for its own while it builds, for all threads.
_building = threading.Lock()


def transformers_module() -> Any:
    """Returns the package transformers.

    Raises:
        InvalidRunError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise InvalidRunError(
            "it needs transformers, which this service does not have; install preceptor[transformers] there"
        ) from error
    return transformers


def built(auto_class: Any, config: Any) -> nn.Module:
    """Returns the untrained model that an auto class of transformers builds from `config`."""
    with _building:
        model: nn.Module = auto_class.from_config(config)
    return model


def settable(config: Any, prefix: str = "") -> dict[str, Setting]:
    """Returns the settings of `config` that a client may change, `prefix` before each name, with their defaults."""
    of_every_config = set(transformers_module().PretrainedConfig().to_dict())
    return {
        prefix + name: value
        for name, value in config.to_dict().items()
        if name not in of_every_config
        and not _REFUSED_SETTINGS.fullmatch(name)
        and (isinstance(value, bool | int | float | str) or _is_number_list(value))
    }


def plain(settings: Mapping[str, Setting], prefix: str = "") -> dict[str, Any]:
    """Returns the settings that start with `prefix`, without it, tuples as lists."""
    return {
        name.removeprefix(prefix): list(value) if isinstance(value, tuple) else value
        for name, value in settings.items()
        if name.startswith(prefix)
    }


def check_settings(
    model_type: str, defaults: Mapping[str, Setting], set_by_us: Mapping[str, str], settings: Mapping[str, Setting]
) -> None:
    """Checks a client's settings against the defaults that they replace.

    Args:
        model_type: transformers' name of the architecture, for errors.
        defaults: what can be set, as `settable` gives it.
        set_by_us: setting → the setting of ours that it follows from.
        settings: the client's.

    Raises:
        InvalidRunError: unknown setting; value of another type than its default, or beyond the limits above.
    """
    for name, value in settings.items():
        if name in set_by_us:
            raise InvalidRunError(f"{quoted(name)} follows from {set_by_us[name]!r}; set that instead")
        if name not in defaults:
            known = sorted(defaults.keys() - set_by_us.keys())
            raise InvalidRunError(f"{quoted(model_type)} has no setting {quoted(name)}; it takes {known}")
        default = defaults[name]
        if _kind(value) != _kind(default):
            raise InvalidRunError(
                f"{name} is {quoted(value)}, a {_kind(value)}; give a {_kind(default)}, like {default!r}"
            )
        if isinstance(value, str):
            if not _PLAIN_WORD.fullmatch(value):
                raise InvalidRunError(f"{name} is {quoted(value)}; give one word of a-z, 0-9 and _, like {default!r}")
            continue
        numbers = [value] if isinstance(value, int | float) else value
        if len(numbers) > MAX_LIST_LENGTH:
            raise InvalidRunError(f"{name} has {len(numbers)} values; the limit is {MAX_LIST_LENGTH}")
        limit = _MAX_WIDE if _WIDE_SETTINGS.fullmatch(name) else MAX_NUMBER
        if any(abs(number) > limit for number in numbers):
            raise InvalidRunError(f"{name} is {quoted(value)}; the limit is {limit}")
        if _COUNTS_LAYERS.fullmatch(name) and sum(numbers) > MAX_LAYERS:
            raise InvalidRunError(f"{name} is {quoted(value)}; the limit is {MAX_LAYERS} layers")


def _is_number_list(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, int | float) for item in value)


def _kind(value: Setting) -> str:
    if isinstance(value, bool):
        return "truth value"
    if isinstance(value, int | float):
        return "number"
    return "word" if isinstance(value, str) else "list of numbers"
