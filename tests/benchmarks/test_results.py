from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.__main__ import BENCHMARKS
from benchmarks.results import Figure, Result


def test_every_benchmark_has_a_result_with_hardware_commit_and_command() -> None:
    committed = {result.name: result for result in results.load_all(BENCHMARKS.results)}
    assert sorted(committed) == sorted(BENCHMARKS.members)
    for name, result in committed.items():
        assert result.figures
        assert result.raw
        assert result.command == f"python -m benchmarks {name}"
        assert len(result.commit.removesuffix("+changes")) == 40
        assert {"cpu", "cores", "memory_gib"} <= set(result.hardware)


def test_results_tell_nothing_of_hosts_and_paths() -> None:
    for path in BENCHMARKS.results.glob("*.json"):
        text = path.read_text()
        assert "/home" not in text
        assert "localhost" not in text


def test_the_table_of_the_readme_is_the_one_that_the_results_give() -> None:
    assert results.table_of(BENCHMARKS.page.read_text()) == results.markdown(results.load_all(BENCHMARKS.results))


def test_a_result_is_read_as_it_was_saved_whatever_was_counted(tmp_path: Path) -> None:
    figures = [Figure("calls", 3, "", limit=2)]
    result = Result("counts", "count", "0" * 40, "now", {}, {}, figures, {"codes": Counter({"OK": 2, "UNKNOWN": 1})})
    result.save(tmp_path)
    assert results.load_all(tmp_path) == [result]


@pytest.mark.parametrize(
    ("value", "limit", "sense", "verdict"),
    [
        (2.4, 2.5, "at most", "reached"),
        (2.6, 2.5, "at most", "missed"),
        (0.79, 0.8, "at least", "missed"),
        (0.8, 0.8, "at least", "reached"),
        (9.0, None, "at most", ""),
    ],
)
def test_a_figure_on_the_wrong_side_of_its_target_is_missed(value, limit, sense, verdict) -> None:  # type: ignore[no-untyped-def]
    assert Figure("f", value, "×", limit, sense).verdict == verdict
