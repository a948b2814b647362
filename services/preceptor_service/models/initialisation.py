"""`own_random_stream`: builds models from a fixed random stream of their own, leaving torch's alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_RANDOM_FACTORIES = frozenset({torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal})
_RANDOM_FILLS = frozenset(
    {
        torch.Tensor.normal_,
        torch.Tensor.uniform_,
        torch.Tensor.random_,
        torch.Tensor.bernoulli_,
        torch.Tensor.exponential_,
        torch.Tensor.log_normal_,
        torch.Tensor.cauchy_,
        torch.Tensor.geometric_,
    }
)
# Those of torch.nn.init that a mode sees, by name since transformers puts its own in their place.
_INITIALISERS = frozenset({"uniform_", "normal_", "kaiming_uniform_"})


@contextmanager
def own_random_stream(seed: int = 0) -> Iterator[None]:
    """Within it, and in this thread only, random initial values on the CPU come from a fresh stream.

    A notebook that shares the process with a scorer then trains the same with and without it, and
    every replica builds the same buffers where an architecture draws them at random.
    """
    with _OwnGenerator(torch.Generator().manual_seed(seed)):
        yield


class _OwnGenerator(TorchFunctionMode):
    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        settings = dict(kwargs or {})
        if settings.get("generator") is None and _fills_cpu(func, args, settings):
            settings["generator"] = self._generator
        return func(*args, **settings)


def _fills_cpu(func: Callable[..., Any], args: tuple[Any, ...], settings: Mapping[str, Any]) -> bool:
    if func in _RANDOM_FILLS:
        return bool(args[0].device.type == "cpu")
    if "tensor" in settings and func.__name__ in _INITIALISERS:
        return bool(settings["tensor"].device.type == "cpu")
    if func in _RANDOM_FACTORIES:
        return torch.device(settings.get("device") or torch.get_default_device()).type == "cpu"
    return False
