"""The proof `seeded-bugs` in seconds, and that its table is what it says."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.machine import ROOT
from benchmarks.results import table_of
from tests.reliability import seeded_bugs
from tests.reliability.bugs import BUGS, PAGE, Bug, table
from tests.reliability.seeded_bugs import outcome_of, plant

BY_NAME = {bug.name: bug for bug in BUGS}


@pytest.mark.slow
def test_some_bugs_are_caught_each_by_its_test() -> None:
    figures, raw = seeded_bugs.run(short=True)

    assert [figure for figure in figures if figure.is_missed] == [], raw


def test_a_change_that_is_no_bug_is_not_caught() -> None:
    bug = BY_NAME["takes NaN for a score"]

    outcome = outcome_of([bug.test], [replace(bug, new=f"{bug.old}  # the same")])

    assert outcome.is_passed, outcome.said


def test_code_that_cannot_be_imported_is_not_caught() -> None:
    bug = BY_NAME["takes NaN for a score"]

    outcome = outcome_of([bug.test], [replace(bug, new="return return")])

    assert (outcome.passed, outcome.failed) == (0, 0), outcome.said


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_what_a_bug_changes_stands_there_once_and_its_test_exists(bug: Bug, tmp_path: Path) -> None:
    copy = tmp_path / bug.file
    copy.parent.mkdir(parents=True)
    copy.write_text((ROOT / bug.file).read_text())

    plant(bug, tmp_path)

    ast.parse(copy.read_text())
    assert copy.read_text() != (ROOT / bug.file).read_text()
    assert bug.test.partition("[")[0] in _tests_of(bug.test.partition("::")[0])


@pytest.mark.parametrize("text", ["", "a b a"])
def test_a_bug_whose_place_is_not_found_once_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.py").write_text(text)

    with pytest.raises(ValueError, match=r"changes what is in a\.py [02] times, not once: 'a'"):
        plant(Bug("n", "p", "a.py", "a", "b", "t"), tmp_path)


def test_names_and_short_names_are_of_the_table() -> None:
    assert len(BY_NAME) == len(BUGS)
    assert set(seeded_bugs.SHORT) <= BY_NAME.keys()


def test_the_table_of_the_page_is_the_one_of_the_code() -> None:
    assert table_of(PAGE.read_text(), "bugs") == table(BUGS)


def _tests_of(file: str) -> set[str]:
    """Returns the names of all tests in a file, as pytest has them."""
    found = set()
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{file}::{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            found.add(f"{file}::{node.name}")
    return found
