"""Every error of ours survives the wire: its canonical code and its reason name it and nothing else."""

from __future__ import annotations

import re

import grpc
import pytest

from preceptor import errors
from preceptor.errors import PreceptorError, error_from

TREE = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, PreceptorError)]


def test_the_tree_is_whole() -> None:
    found, waiting = [], [PreceptorError]
    while waiting:
        found.append(waiting.pop())
        waiting += found[-1].__subclasses__()

    assert sorted(error.__name__ for error in TREE) == sorted(error.__name__ for error in found)


def test_reasons_are_unique() -> None:
    assert len({error.reason for error in TREE}) == len(TREE)


@pytest.mark.parametrize("error", TREE)
def test_code_is_canonical_and_reason_is_in_capitals(error: type[PreceptorError]) -> None:
    assert error.code in grpc.StatusCode.__members__
    assert error.code != "OK"
    assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", error.reason)


@pytest.mark.parametrize("error", TREE)
def test_code_and_reason_bring_back_the_class_and_the_message(error: type[PreceptorError]) -> None:
    back = error_from(error.code, error.reason, "why")

    assert type(back) is error
    assert str(back) == "why"


@pytest.mark.parametrize("error", TREE)
def test_a_subclass_keeps_the_code_of_its_parent_so_that_a_code_alone_finds_the_parent(
    error: type[PreceptorError],
) -> None:
    alone = error_from(error.code, None, "why")

    assert alone.code == error.code
    assert issubclass(error, type(alone))


def test_an_unknown_reason_falls_back_to_the_code() -> None:
    assert type(error_from("NOT_FOUND", "NEWER_THAN_THIS_CLIENT", "why")) is errors.NotFoundError


def test_a_reason_under_another_code_is_not_believed() -> None:
    assert type(error_from("INTERNAL", "RUN_NOT_FOUND", "why")) is errors.InternalError


def test_an_unknown_code_is_the_root() -> None:
    assert type(error_from("DATA_LOSS", None, "why")) is PreceptorError
