"""Every message, field, enum value and rpc says what it means, in the proto and in the typed stubs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor

from tests.contract.golden import FILES


def commented(stub: ast.Module) -> Iterator[str]:
    """Yields `Message`, `Message.field` and `ENUM_VALUE` for each that carries a docstring in the stub."""
    yield from _documented_names(stub.body)
    for node in stub.body:
        if isinstance(node, ast.ClassDef):
            if ast.get_docstring(node):
                yield node.name
            yield from (f"{node.name}.{name}" for name in _documented_names(node.body))


def _documented_names(body: list[ast.stmt]) -> Iterator[str]:
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            yield node.name
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and _is_text(after):
            yield node.target.id


def _is_text(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def declared(file: FileDescriptor) -> Iterator[str]:
    """Yields the same names for everything that the proto declares."""
    for message in file.message_types_by_name.values():
        yield message.name
        yield from (f"{message.name}.{field.name}" for field in message.fields)
    for enum in file.enum_types_by_name.values():
        yield enum.name
        yield from (value.name for value in enum.values)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_typed_stubs_carry_a_comment_for_everything(file: FileDescriptor, repository: Path) -> None:
    stub = repository / "clients/python" / file.name.replace(".proto", "_pb2.pyi")

    assert set(declared(file)) - set(commented(ast.parse(stub.read_text()))) == set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_rpc_is_preceded_by_a_comment(file: FileDescriptor, repository: Path) -> None:
    lines = [line.strip() for line in (repository / "proto" / file.name).read_text().splitlines()]
    above_rpc = {
        line.removeprefix("rpc ").split("(")[0]: above for above, line in pairwise(lines) if line.startswith("rpc ")
    }
    methods = [method.name for service in file.services_by_name.values() for method in service.methods]

    assert sorted(above_rpc) == sorted(methods)
    assert [name for name, above in above_rpc.items() if not above.startswith("//")] == []
