"""`own_random_numbers`: dropout and the like from a stream of their own. Called around the updates of a scorer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_WITH_GENERATOR: Mapping[Any, Any] = {
    _aten.rand.default: _aten.rand.generator,
    _aten.randn.default: _aten.randn.generator,
    _aten.randint.default: _aten.randint.generator,
    _aten.randint.low: _aten.randint.low_generator,
    _aten.randperm.default: _aten.randperm.generator,
}


@contextmanager
def own_random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Within it, and in this thread only, operators draw from a stream that starts at `seed`.

    Torch's global state is left alone, so that a trainer in the same process trains the same with and without it:
    what takes a generator is given one. An operator that takes none, such as the fused dropout of a GPU, draws from
    the global stream, set for its length and set back.
    """
    with _OwnStream(torch.Generator(device).manual_seed(seed), device):
        yield


class _OwnStream(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, generator: torch.Generator, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = generator
        self._device = device

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        settings = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:  # type: ignore[attr-defined]
            return func(*args, **settings)
        func = _WITH_GENERATOR.get(func, func)
        if any(argument.name == "generator" for argument in func._schema.arguments):  # type: ignore[attr-defined]
            return func(*args, **{**settings, "generator": settings.get("generator") or self._generator})
        devices = [] if self._device.type == "cpu" else [self._device]
        with torch.random.fork_rng(devices=devices):
            word = torch.randint(2**62, (1,), generator=self._generator, device=self._device)
            torch.manual_seed(int(word))
            return func(*args, **settings)
