"""`ArchitectureRegistry`: model architectures by name. A client names one; only the operator can add one."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import ConfigDict, ValidationError, validate_call
from torch import nn

from preceptor.errors import InvalidRunError, PreceptorError, ResourceExhaustedError, UnavailableError
from preceptor.quoting import brief, quoted, shortened
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
_OF_SETTINGS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What code raises that cannot do with its arguments."""
_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)

logger = logging.getLogger(__name__)


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
            ResourceExhaustedError: there is no memory for it.
            UnavailableError: a file that it needs cannot be read now.
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
            raise _not_built(architecture, config, error) from error

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
            raise InvalidRunError(f"model is {quoted(architecture)}; this service knows {list(self.names())}")
        return function


def _not_built(architecture: str, config: Mapping[str, Any], error: Exception) -> PreceptorError:
    """Returns what is said to whoever chose `config`: what the architecture said of it, nothing of this machine."""
    what = f"model {architecture!r} cannot be built from {quoted(dict(config))}"
    if isinstance(error, _OF_SETTINGS):
        return InvalidRunError(f"{what}: {type(error).__name__}: {brief(error)}")
    logger.warning("%s", what, exc_info=error)
    if isinstance(error, MemoryError):
        return ResourceExhaustedError(f"{what}: the service has no memory for it; use a smaller model")
    if isinstance(error, OSError):
        return UnavailableError(f"{what} now; try again, the service's log says why")
    return InvalidRunError(f"{what}: it raises {type(error).__name__}; the service's log says why")


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
                problem = f"no setting {quoted(setting)}; it takes {_settings(function)}"
            case "missing_keyword_only_argument":
                problem = f"{setting} is missing; give a value"
            case _:
                problem = f"{shortened(setting)} is {quoted(item['input'])}: {item['msg']}"
        problems.setdefault(setting, problem)  # one complaint each; a setting of several types would get one per type
    return f"model {architecture!r}: " + "; ".join(problems.values())


def _settings(function: Architecture) -> list[str]:
    return [name for name, kind in inspect.signature(function).parameters.items() if kind.kind != kind.VAR_KEYWORD]
