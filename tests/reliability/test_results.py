"""The page of the proofs says what their results say, and leaves no proof out."""

from __future__ import annotations

import re

from benchmarks.results import load_all, table_of
from tests.reliability.promises import PROMISES, summary
from tests.reliability.proofs import PROOFS, suite

SUITE = suite(short=False)


def test_every_proof_is_of_one_promise() -> None:
    assert sorted(name for promise in PROMISES for name in promise.proofs) == sorted(PROOFS)


def test_results_are_of_proofs_and_say_how_they_came_about() -> None:
    for result in load_all(SUITE.results):
        assert result.name in PROOFS
        assert result.command == f"python -m tests.reliability {result.name}"
        assert re.fullmatch(r"[0-9a-f]{40}", result.commit), f"{result.name} was measured with uncommitted changes"
        assert {"cpu", "cores", "memory_gib"} <= set(result.hardware)


def test_results_tell_nothing_of_hosts_and_paths() -> None:
    for path in SUITE.results.glob("*.json"):
        assert not re.search(r"/home|localhost", path.read_text()), path.name


def test_the_tables_of_the_page_are_those_that_the_results_give() -> None:
    page, results = SUITE.page.read_text(), load_all(SUITE.results)
    for name, table in SUITE.tables.items():
        assert table_of(page, name) == table(results)


def test_a_missed_target_and_a_proof_that_was_not_run_stand_in_the_table() -> None:
    chaos = next(result for result in load_all(SUITE.results) if result.name == "chaos")
    line = next(line for line in summary([]).splitlines() if "prove-chaos" in line)
    assert line.endswith("| `make prove-chaos` | 0 of 0 | `chaos` was not run whole yet |")
    [failed] = [figure for figure in chaos.figures if figure.name == "steps lost"]
    chaos.figures[chaos.figures.index(failed)] = type(failed)(failed.name, 3, "", 0)
    assert "steps lost: 3, target at most 0" in summary([chaos])
