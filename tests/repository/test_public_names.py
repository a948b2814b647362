"""What a trainer imports explains itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import preceptor


def documentable() -> Iterator[tuple[str, object]]:
    """Yields name and value of each public class, function, method and property of `preceptor`."""
    for name in preceptor.__all__:
        value = getattr(preceptor, name)
        if inspect.isclass(value):
            yield from ((f"{name}.{member}", it) for member, it in vars(value).items() if _is_method(member, it))
        if inspect.isclass(value) or callable(value):
            yield name, value


def _is_method(name: str, value: object) -> bool:
    return not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property | classmethod))


def test_all_names_what_is_there() -> None:
    assert [name for name in preceptor.__all__ if not hasattr(preceptor, name)] == []
    assert {"PreceptorError", "RunSpec", "SelectionClient"} <= set(preceptor.__all__)


def test_every_public_name_has_a_docstring_of_its_own() -> None:
    def generated(name: str, text: str) -> bool:
        return text.startswith(f"{name}(")  # what dataclasses write where nobody wrote anything

    assert [name for name, value in documentable() if not value.__doc__ or generated(name, value.__doc__)] == []
