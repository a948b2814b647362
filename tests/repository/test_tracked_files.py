"""Nothing is committed that belongs to one machine, or that style.md rules out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.repository.tracked import tracked_files, tracked_texts

# The brackets keep this file from finding itself.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w/.\-}])/(?:[w]ork|[r]oot|[t]mp)(?:/|\b(?![\w-]))",
    "a package registry's host": r"[p](?:ypi|ythonhosted)\.org|[n]pmjs\.(?:org|com)|[d]eb\.debian\.org|[g]olang\.org",
    "work put off": r"\b(?:[T]ODO|[F]IXME|[X]XX)\b",
}
VAGUE_NAMES = {"base", "common", "core", "helper", "helpers", "misc", "util", "utils"}


def found(pattern: str, below: str = "") -> list[str]:
    """Returns `path:line: text` of each tracked line that matches."""
    return [
        f"{path}:{number}: {line.strip()[:120]}"
        for path, text in tracked_texts().items()
        if str(path).startswith(below)
        for number, line in enumerate(text.splitlines(), start=1)
        if re.search(pattern, line)
    ]


@pytest.mark.parametrize("pattern", FORBIDDEN.values(), ids=FORBIDDEN)
def test_no_tracked_file_holds(pattern: str) -> None:
    assert found(pattern) == []


def test_tests_wait_for_conditions_and_never_sleep() -> None:
    assert found(r"\btime\.[s]leep\(", below="tests/") == []


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert [str(path) for path in tracked_files() if VAGUE_NAMES & {part.split(".")[0] for part in path.parts}] == []


def test_texts_end_in_a_newline_and_have_no_trailing_space() -> None:
    generated = ("_pb2.py", "_pb2.pyi", ".svg")
    wrong = [
        str(path)
        for path, text in tracked_texts().items()
        if text and not path.name.endswith(generated) and (text[-1] != "\n" or re.search(r"[ \t]$", text, re.MULTILINE))
    ]

    assert wrong == []


def test_what_is_ignored_is_not_tracked() -> None:
    ignored = {".venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", "dist", "build"}

    assert [str(path) for path in tracked_files() if ignored & set(Path(path).parts)] == []
