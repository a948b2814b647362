"""`imported`: a function of the operator's own, by the path that the configuration names."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Container
from typing import Any


def imported(setting: str, name: str, path: str, built_in: Container[str]) -> Callable[..., Any]:
    """Returns the function at `path`, which the operator registers as `name`.

    Args:
        setting: where the configuration says so, e.g. `"architectures"`.
        name: what runs will call it.
        path: `"package.module:function"`.
        built_in: names that are taken.

    Raises:
        ValueError: the name is taken, the path cannot be imported, or it is no function.
    """
    if name in built_in:
        raise ValueError(f"{setting}.{name}: the name is taken by a built-in; choose another")
    module_name, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{setting}.{name} is {path!r}, which cannot be imported ({error}); give 'package.module:function'"
        ) from error
    if not callable(found):
        raise ValueError(f"{setting}.{name} is {path!r}, a {type(found).__name__}; it must be a function")
    function: Callable[..., Any] = found
    return function
