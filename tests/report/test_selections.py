"""What a report reads from a ledger, against counting by hand."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preceptor import MemoryBank, RunSpec
from preceptor_service.ledger.entries import Entry
from preceptor_service.report import selections
from preceptor_service.report.selections import read_selections
from preceptor_service.schedule import is_held_back
from tests.report import ledgers


def mixed(kind: str) -> list[Entry]:
    """Forty steps, some held back, some fallbacks; ids repeat."""
    entries = []
    for step in range(40):
        numbers = np.random.default_rng(step).permutation(30)[:12]
        ids: Any = numbers if kind == "numbers" else [f"ex-{number}" for number in numbers]
        if is_held_back(ledgers.SPEC, step):
            entries.append(ledgers.unscored(step, ids))
        elif step % 11 == 0:
            entries.append(ledgers.unscored(step, ids, "deadline" if step else "stale"))
        else:
            entries.append(ledgers.entry(step, ids))
    return entries


@pytest.mark.parametrize("kind", ["numbers", "texts"])
@pytest.mark.parametrize("counts_at_once", [2_000_000, 20])
def test_counts_by_example_are_those_of_a_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, counts_at_once: int
) -> None:
    monkeypatch.setattr(selections, "_COUNTS_AT_ONCE", counts_at_once)
    monkeypatch.setattr(selections, "_ROWS_AT_ONCE", 7)
    entries = mixed(kind)
    found = read_selections(ledgers.write(tmp_path / "l.parquet", entries), ledgers.SPEC).examples
    assert found is not None
    offered: defaultdict[str, int] = defaultdict(int)
    selected, expected = defaultdict(int, offered), defaultdict[str, float](float)
    scores: defaultdict[str, list[float]] = defaultdict(list)
    for one in entries:
        for place, name in enumerate(map(str, one.example_id.to_pylist())):
            offered[name] += 1
            selected[name] += place in one.indices
            expected[name] += len(one.indices) / one.candidates
            scores[name] += [float(one.scores[place])] if len(one.scores) else []
    assert found.ids.to_pylist() == sorted(offered)
    for at, name in enumerate(found.ids.to_pylist()):
        assert (found.offered[at], found.selected[at]) == (offered[name], selected[name])
        assert found.expected[at] == pytest.approx(expected[name])
        assert found.mean_score[at] == pytest.approx(np.mean(scores[name]))


def test_answers_are_counted_by_how_they_came_about_and_periods_hold_each_once(tmp_path: Path) -> None:
    entries = mixed("numbers")
    found = read_selections(ledgers.write(tmp_path / "l.parquet", entries), ledgers.SPEC)
    held = sum(is_held_back(ledgers.SPEC, step) for step in range(40))
    reasons = [one.fallback_reason for one in entries]
    assert (found.first_step, found.last_step, found.answers, found.held_back) == (0, 39, 40, held)
    assert found.fallbacks == {name: reasons.count(name) for name in ("deadline", "stale") if name in reasons}
    assert (found.candidates, found.selected) == (40 * 12, 40 * 4)
    assert len(found.periods) == 24
    steps = [(period.first_step, period.last_step) for period in found.periods]
    assert [step for first, last in steps for step in range(first, last + 1)] == list(range(40))
    for period in found.periods:
        of = [one for one in entries if period.first_step <= one.step <= period.last_step]
        scored = [one for one in of if len(one.scores)]
        assert period.answers == len(of)
        assert period.fallbacks == sum(one.fallback_reason is not None for one in of)
        if not scored:
            assert (period.quantiles, period.mean_offered, period.mean_staleness_steps) == (None, None, None)
            continue
        assert period.quantiles is not None
        every = np.concatenate([one.scores for one in scored])
        assert period.quantiles == pytest.approx(np.quantile(every, [0.05, 0.25, 0.5, 0.75, 0.95]), abs=1e-6)
        assert period.mean_offered == pytest.approx(every.mean(), abs=1e-6)
        chosen = np.concatenate([one.scores[one.indices] for one in scored])
        assert period.mean_selected == pytest.approx(chosen.mean(), abs=1e-6)
        assert period.mean_staleness_steps == pytest.approx(np.mean([one.step % 5 for one in scored]))


def test_of_many_scores_an_even_part_stands_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selections, "_SCORES_PER_PERIOD", 3_000)
    entries = [ledgers.entry(0, None, rows=4_000), ledgers.entry(0, None, rows=4_000, rank=1)]
    (period,) = read_selections(ledgers.write(tmp_path / "l.parquet", entries), ledgers.SPEC).periods
    assert period.quantiles is not None
    assert period.quantiles == pytest.approx([-1.64, -0.67, 0, 0.67, 1.64], abs=0.2)
    assert period.mean_offered == pytest.approx(np.mean(entries[0].scores), abs=1e-6)


def test_scores_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    scores = np.array([1.0, math.nan, 3.0, -math.inf], np.float32)
    entries = [ledgers.entry(0, [7, 8, 9, 10], rows=4, scores=scores, indices=np.array([2]))]
    found = read_selections(ledgers.write(tmp_path / "l.parquet", entries), ledgers.SPEC)
    assert (found.periods[0].mean_offered, found.periods[0].mean_selected) == (2.0, 3.0)
    assert found.examples is not None
    by_id = dict(zip(found.examples.ids.to_pylist(), found.examples.mean_score, strict=True))
    assert (by_id["7"], by_id["9"]) == (1.0, 3.0)
    assert math.isnan(by_id["8"])
    assert math.isnan(by_id["10"])


def test_what_was_selected_beyond_chance_comes_first_then_what_scored_higher(tmp_path: Path) -> None:
    scores, best = np.arange(12, dtype=np.float32), np.array([11, 10, 9, 8])
    entries = [ledgers.entry(step, list(range(12)), scores=scores, indices=best) for step in range(3)]
    found = read_selections(ledgers.write(tmp_path / "l.parquet", entries), ledgers.SPEC).examples
    assert found is not None
    ranked = [found.ids[place].as_py() for place in found.ranked()]
    assert ranked == [str(number) for number in reversed(range(12))]


def test_without_ids_there_are_no_examples_and_an_empty_ledger_is_refused(tmp_path: Path) -> None:
    found = read_selections(ledgers.write(tmp_path / "a.parquet", [ledgers.entry(5, None)]), ledgers.SPEC)
    assert (found.examples, found.answers, len(found.periods)) == (None, 1, 1)
    with pytest.raises(ValueError, match="holds no row"):
        read_selections(ledgers.write(tmp_path / "b.parquet", []), ledgers.SPEC)


def test_what_a_bank_remembers_is_offered_and_what_it_samples_is_selected(tmp_path: Path) -> None:
    spec = RunSpec("told", model="small_cnn", memory_bank=MemoryBank(40))
    scores = np.array([1.0, 2.0, 3.0, math.nan], np.float32)
    entries = [
        ledgers.remembered(0, [1, 2, 3, 4], scores=scores),
        ledgers.remembered(1, [3, 5], scores=np.array([5.0, 7.0], np.float32)),
        ledgers.sampled(2, [3, 9], [0, 1], scores=np.array([5.0, 8.0], np.float32)),
        ledgers.sampled(2, [3], [2], scores=np.array([5.0], np.float32), rank=1),
        ledgers.entry(2, [1, 2], rows=2, scores=scores[:2], indices=np.array([1]), learner_step=0),
    ]
    found = read_selections(ledgers.write(tmp_path / "l.parquet", entries, spec), spec)
    assert (found.answers, found.remembered, found.candidates, found.selected) == (3, 2, 8, 4)
    assert (found.first_step, found.last_step, found.held_back, found.fallbacks) == (0, 2, 0, {})
    assert found.examples is not None
    by_id = {name: place for place, name in enumerate(found.examples.ids.to_pylist())}
    told = {
        name: [getattr(found.examples, of)[place] for of in ("offered", "selected", "expected", "mean_score")]
        for name, place in by_id.items()
    }
    # Three examples were sampled for six offers to the bank; the select drew one of two.
    assert told["1"] == [2, 0, 0.5 + 0.5, 1.0]
    assert told["2"] == [2, 1, 0.5 + 0.5, 2.0]
    assert told["3"] == [2, 2, 2 * 0.5, 4.0]
    assert told["5"] == [1, 0, 0.5, 7.0]
    assert told["4"][:3] == [1, 0, 0.5]
    assert told["9"][:3] == [0, 1, 0.0]  # when it was remembered is no longer kept
    assert sum(found.examples.expected) == sum(found.examples.selected)
    first, second, third = found.periods
    assert (first.answers, first.mean_offered, first.mean_selected, first.mean_staleness_steps) == (0, 2.0, None, None)
    assert (second.answers, second.mean_offered) == (0, 6.0)
    assert (third.answers, third.mean_offered, third.mean_selected) == (3, 1.5, 5.0)
    assert third.mean_staleness_steps == pytest.approx(np.mean([1.5, 0.0, 2.0]))


def test_a_sample_that_was_held_back_is_counted_and_shows_nothing_of_what_scores_do(tmp_path: Path) -> None:
    spec = replace(ledgers.SPEC, memory_bank=MemoryBank(40))
    held = next(step for step in range(40) if is_held_back(spec, step))
    entries = [ledgers.remembered(held, [1, 2]), ledgers.sampled(held, [1], [0])]
    found = read_selections(ledgers.write(tmp_path / "l.parquet", entries, spec), spec)
    assert (found.answers, found.held_back) == (1, 1)
    assert found.periods[0].mean_selected is None
    assert found.periods[0].mean_offered is not None
