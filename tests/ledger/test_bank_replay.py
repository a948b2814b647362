"""What was sampled from a memory bank replays from the ledger alone; what differs is named, what cannot be is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from preceptor import MemoryBank, RunSpec
from preceptor_service.cli.main import app
from preceptor_service.ledger.entries import Entry, to_table
from preceptor_service.ledger.replay import Replayed, ReplayFile
from preceptor_service.method_registry import MethodRegistry
from preceptor_service.run_store import RunRecord
from tests.ledger.tables import changed
from tests.naive.memory_bank import Example, NaiveBank

B, COUNT, STEPS = 32, 6, 10
NOTHING = np.empty(0, np.int64)
BANK = MemoryBank(3 * B, max_times_sampled=2, max_staleness_steps=15)
SETTINGS: dict[str, Any] = {"seed": 3, "uniform_share": 0.25, "select_from_step": 2, "control_fraction": 0.3}


def bank_ledger(texts: bool = False, **settings: Any) -> pa.Table:
    """Ten super-batches that overlap, a sample after each, as a dictionary and loops keep and draw them."""
    spec = RunSpec("kept", model="small_cnn", ledger=True, memory_bank=BANK, **{**SETTINGS, **settings})
    naive, entries = NaiveBank(spec, BANK), []
    for step in range(STEPS):
        ids: list[Any] = list(range(step * 20, step * 20 + B))
        ids = [f"ex-{number}" for number in ids] if texts else ids
        scores = np.random.default_rng(step).random(B).astype(np.float32)
        if step == 4:
            scores[:3] = np.nan, np.inf, -np.inf
        naive.put(ids, scores.tolist(), step + 1, 2 * step)
        stamp = {"learner_version": step + 1, "learner_step": 2 * step}
        entries.append(_entry(naive, "remember", step, ids, scores, candidates=B, digest=b"d", **stamp))
        before = dict(naive.examples)
        eligible = [one for one in before.values() if 2 * step - one.learner_step <= 15]
        drawn = naive.sample(COUNT, 2 * step, 1)
        assert drawn is not None
        of = [before[name] for name in drawn]
        versions, steps = (np.array([getattr(one, name) for one in of]) for name in ("learner_version", "learner_step"))
        stamps = {"learner_versions": versions, "learner_steps": steps, "rank": 1, "candidates": len(eligible)}
        entries.append(
            _entry(naive, "sample", 2 * step, drawn, np.array([one.score for one in of], np.float32), **stamps)
        )
    return to_table(RunRecord(spec, 1.0, 16), entries)


def _scores(examples: list[Example]) -> Any:
    return np.array([one.score for one in examples], np.float32)


def _entry(naive: NaiveBank, kind: Any, step: int, ids: list[Any], scores: Any, **fields: Any) -> Entry:
    blank: dict[str, Any] = {
        "time_us": naive.operations,
        "rank": 0,
        "learner_version": None,
        "learner_step": None,
        "reference_digest": None,
        "reference_fold_1_digest": None,
        "fallback_reason": None,
        "digest": None,
        "indices": NOTHING,
        "weights": np.empty(0, np.float32),
        "bank_operation": naive.operations,
        "bank_examples": len(naive.examples),
    }
    return Entry(**{**blank, "kind": kind, "step": step, "example_id": pa.array(ids), "scores": scores, **fields})


def replayed(table: pa.Table, file: Path) -> list[Replayed]:
    pq.write_table(table, file)
    return list(ReplayFile(file).replayed(MethodRegistry()))


def differences(table: pa.Table, file: Path) -> list[str]:
    found = replayed(table, file)
    assert len(found) == len(table)
    return [one.difference for one in found if one.difference is not None]


@pytest.mark.parametrize("texts", [False, True], ids=["numbers", "texts"])
@pytest.mark.parametrize("selector", ["softmax", "top_k", "uniform"])
def test_what_the_naive_bank_samples_replays_in_whatever_order_the_rows_are(
    file: Path, selector: str, texts: bool
) -> None:
    table = bank_ledger(texts, selector=selector)
    order = np.random.default_rng(1).permutation(len(table))
    for arranged in (table, table.take(order)):
        found = replayed(arranged, file)
        assert len(found) == 2 * STEPS
        assert all(one.is_known and one.difference is None for one in found)


LAST = 2 * STEPS - 1


def _next(score: float) -> float:
    return float(np.nextafter(np.float32(score), np.float32(9)))


@pytest.mark.parametrize(
    ("column", "row", "change", "said"),
    [
        ("example_id", LAST, lambda ids: [ids[1], ids[0], *ids[2:]], "draw 0 was example"),
        ("example_id", LAST, lambda ids: [*ids[:-1], 10**6], f"draw {COUNT - 1} was example 1000000, and is"),
        ("example_id", LAST, lambda _: None, "it has no ids"),
        ("example_id", LAST, lambda ids: ids[:-1], f"it has {COUNT} scores for {COUNT - 1} ids"),
        ("scores", LAST, lambda scores: [_next(scores[0]), *scores[1:]], "the scores differ"),
        ("learner_versions", LAST, lambda versions: [99, *versions[1:]], "the learner versions differ"),
        ("learner_steps", LAST, lambda steps: [*steps[:-1], 99], "the steps of the learner versions differ"),
        ("weights", LAST, lambda _: [1.0] * COUNT, "the importance weights differ"),
        ("candidates", LAST, lambda count: count + 1, "it was drawn from"),
        ("bank_examples", LAST, lambda count: count + 1, "it does not fit what the memory bank held"),
        ("step", LAST, lambda _: 0, "draw 0 was"),
        ("rank", LAST, lambda _: 0, "draw 0 was"),
        ("kind", LAST, lambda _: "select", "its kind is 'select'"),
        ("bank_examples", LAST - 1, lambda count: count - 1, "it does not fit what the memory bank held"),
        ("scores", LAST - 1, lambda scores: [100.0] * len(scores), " was example "),
    ],
)
def test_whatever_is_changed_is_found(
    file: Path, column: str, row: int, change: Callable[[Any], Any], said: str
) -> None:
    found = differences(changed(bank_ledger(select_from_step=0, control_fraction=0.0), column, row, change), file)
    assert found
    assert said in found[0]


def test_after_a_row_that_does_not_fit_nothing_counts_as_the_same(file: Path) -> None:
    found = differences(changed(bank_ledger(), "bank_examples", 4, lambda count: count + 1), file)
    assert len(found) == 2 * STEPS - 4
    assert set(found[1:]) == {"it follows operation 5 of the memory bank, which does not fit"}


def test_a_sample_that_was_drawn_otherwise_leaves_the_later_ones_as_they_were(file: Path) -> None:
    table = bank_ledger(selector="top_k", uniform_share=0.0, control_fraction=0.0)
    found = differences(changed(table, "example_id", 7, lambda ids: [ids[1], ids[0], *ids[2:]]), file)
    assert len(found) == 1


def test_an_operation_that_is_there_twice_is_told(file: Path) -> None:
    table = bank_ledger()
    found = differences(pa.concat_tables([table, table.slice(3, 1)]), file)
    assert found == ["operation 4 of the memory bank is there twice"]


@pytest.mark.parametrize("row", [0, 7])
def test_what_follows_an_operation_that_is_not_kept_is_told_and_never_equal(file: Path, row: int) -> None:
    table = bank_ledger()
    kept = pa.concat_tables([table.slice(0, row), table.slice(row + 1)])
    found = replayed(kept, file)
    assert [one.is_known for one in found] == [True] * row + [False] * (2 * STEPS - row - 1)
    assert [one.difference for one in found] == [None] * (2 * STEPS - 1)
    ran = CliRunner().invoke(app, ["ledger", "replay", str(file)])
    said = f"{2 * STEPS - row - 1} of 19 steps of run kept are not replayable because earlier operations of the memory "
    assert ran.stdout.startswith(said)
    if row:
        assert (ran.exit_code, ran.stderr) == (0, "")
        assert "; the other 7 replay to what was selected, bit for bit\n" in ran.stdout
    else:
        assert (ran.exit_code, "nothing could be drawn again" in ran.stderr) == (1, True)


def test_operations_of_a_run_without_a_bank_are_no_selections(file: Path) -> None:
    table = bank_ledger()
    bare = to_table(RunRecord(RunSpec("kept", model="small_cnn", ledger=True), 1.0, 16), [])
    found = differences(table.replace_schema_metadata(bare.schema.metadata), file)
    assert len(found) == 2 * STEPS
    assert "it is no operation of a memory bank" in found[0]
