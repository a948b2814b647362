"""`ArchitectureRegistry`: model architectures by name. A client names one; only the operator can add one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import ConfigDict, ValidationError, validate_call
from torch import nn

from preceptor.errors import InvalidRunError, PreceptorError
from preceptor_service.models.causal_lm import causal_lm
from preceptor_service.models.dual_encoder import dual_encoder
from preceptor_service.models.image_classifier import image_classifier
from preceptor_service.models.image_text_model import image_text_model
from preceptor_service.models.initialisation import own_random_stream
from preceptor_service.models.small_cnn import small_cnn
from preceptor_service.own_functions import imported

Architecture = Callable[..., nn.Module]
"""`f(**settings) -> module` with typed keyword-only settings.

The module carries `input_columns: tuple[ColumnSpec, ...]`, named as the arguments of its `forward`, in order. What
else it must have and give depends on the task (`tasks/`, docs/tasks.md):

* `classification`: `num_classes: int`; `forward(...)` gives logits `[N, num_classes]`.
* `image_text`: reads `image`, `input_ids`, `attention_mask`; `forward` gives the tuple of image and text embeddings,
  each `[N, D]`, of any length: the task brings them to 1.
* `causal_lm`: reads `input_ids`, `attention_mask`; `forward` gives logits `[N, L, V]`, those at position t from the
  tokens up to t alone, so that they predict token t + 1.

`columns.token_columns` makes the two columns of tokens. When a run is created, `forward` runs once on the meta device
to see that it takes these columns; whatever value it asks for is 0 there.
"""

_BUILT_IN: Mapping[str, Architecture] = {
    "causal_lm": causal_lm,
    "dual_encoder": dual_encoder,
    "image_classifier": image_classifier,
    "image_text_model": image_text_model,
    "small_cnn": small_cnn,
}
_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
_SHOWN_CHARACTERS = 80


class ArchitectureRegistry:
    """The architectures that ship with the service and those that the operator's config allows.

    Immutable, so threads may share it.
    """

    def __init__(self, extra: Mapping[str, str] | None = None) -> None:
        """Imports the operator's architectures.

        Args:
            extra: name → `"package.module:function"` of the operator's own architectures.

        Raises:
            ValueError: an entry cannot be imported, is no function, or takes a built-in's name.
        """
        own = {name: imported("architectures", name, path, _BUILT_IN) for name, path in (extra or {}).items()}
        self._architectures = {name: _checking(name, function) for name, function in {**_BUILT_IN, **own}.items()}

    def names(self) -> tuple[str, ...]:
        """Returns the names that a run may use, sorted."""
        return tuple(sorted(self._architectures))

    def build(self, architecture: str, config: Mapping[str, Any], seed: int = 0) -> nn.Module:
        """Returns the untrained model on torch's current default device, the same for the same arguments.

        Torch's global random state is neither read nor changed: initial weights come from `seed`.

        Raises:
            InvalidRunError: unknown architecture; unknown, missing, mistyped or out-of-range setting.
        """
        function = self._function(architecture)
        try:
            with own_random_stream(seed):
                return function(**config)
        except ValidationError as error:
            raise InvalidRunError(_complaint(architecture, function, error)) from error
        except PreceptorError as error:
            raise type(error)(f"model {architecture!r}: {error}") from error
        except Exception as error:  # architectures are third-party code that may refuse a setting in any way
            raise InvalidRunError(
                f"model {architecture!r} cannot be built from {_shown(dict(config), 400)}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def outline(self, architecture: str, config: Mapping[str, Any]) -> nn.Module:
        """Returns the model on torch's meta device: every name, shape and dtype, no memory, no values.

        Raises:
            InvalidRunError: as `build`.
        """
        with torch.device("meta"):
            return self.build(architecture, config)

    def settings(self, architecture: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Returns `config`, unchecked, with the defaults of settings that it leaves out.

        Raises:
            InvalidRunError: unknown architecture.
        """
        parameters = inspect.signature(self._function(architecture)).parameters.values()
        defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
        return {**defaults, **config}

    def _function(self, architecture: str) -> Architecture:
        function = self._architectures.get(architecture)
        if function is None:
            raise InvalidRunError(f"model is {_shown(architecture)}; this service knows {list(self.names())}")
        return function


def _checking(name: str, function: Architecture) -> Architecture:
    """Returns `function` with its settings held against their type hints at every call."""
    try:
        return validate_call(config=_STRICT)(function)
    except (RuntimeError, TypeError, NameError) as error:
        raise ValueError(
            f"architectures.{name}: its settings cannot be checked: {error}; give them type hints"
        ) from error


def _complaint(architecture: str, function: Architecture, error: ValidationError) -> str:
    problems: dict[str, str] = {}
    for item in error.errors(include_url=False):
        setting = str(item["loc"][0])
        match item["type"]:
            case "unexpected_keyword_argument":
                problem = f"no setting {_shown(setting)}; it takes {_settings(function)}"
            case "missing_keyword_only_argument":
                problem = f"{setting} is missing; give a value"
            case _:
                problem = f"{setting} is {_shown(item['input'])}: {item['msg']}"
        problems.setdefault(setting, problem)  # one complaint each; a setting of several types would get one per type
    return f"model {architecture!r}: " + "; ".join(problems.values())


def _settings(function: Architecture) -> list[str]:
    return [name for name, kind in inspect.signature(function).parameters.items() if kind.kind != kind.VAR_KEYWORD]


def _shown(value: object, limit: int = _SHOWN_CHARACTERS) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"
