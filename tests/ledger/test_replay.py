"""Replay finds whatever does not follow from scores, settings, step and rank; and says of which step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from preceptor.ledger import FORMAT_KEY, FORMER_FORMAT, FORMER_LACKS, SCHEMA
from preceptor.runs import RunSpec
from preceptor_service.cli.main import app
from preceptor_service.ledger.entries import Entry, to_table
from preceptor_service.ledger.replay import LedgerFileError, ReplayFile
from preceptor_service.method_registry import MethodRegistry
from preceptor_service.run_store import RunRecord
from tests.ledger.tables import changed
from tests.naive.selection import importance_weights, scheduled, select

ROWS, COUNT = 24, 6
SETTINGS: dict[str, Any] = {"score": "hard_learner", "select_from_step": 2, "uniform_share": 0.5, "seed": 3}


def ledger(**settings: Any) -> pa.Table:
    """Ten steps as the naive loop draws them."""
    spec = RunSpec("drawn", model="small_cnn", ledger=True, **{**SETTINGS, **settings})
    return to_table(RunRecord(spec, 1.0, 16), [_entry(spec, step) for step in range(10)])


def _entry(spec: RunSpec, step: int) -> Entry:
    scores = np.random.default_rng(step).random(ROWS).astype(np.float32)
    losses: dict[str, Any] = {"learner_losses": scores.tolist(), "reference_losses": [0.0] * ROWS}
    indices, is_scored = select(spec, count=COUNT, step=step, **losses), scheduled(spec, step, COUNT) > 0
    weights = importance_weights(spec, indices, step=step, **losses) if spec.selector == "proportional" else []
    return Entry(
        time_us=step,
        step=step,
        rank=0,
        candidates=ROWS,
        learner_version=None,
        learner_step=None,
        reference_digest=None,
        reference_fold_1_digest=None,
        fallback_reason=None,
        digest=b"d",
        example_id=None,
        scores=scores if is_scored else np.empty(0, np.float32),
        indices=np.array(indices),
        weights=np.array(weights, np.float32),
    )


def replayed(file: Path) -> dict[int, str]:
    return {
        found.step: found.difference
        for found in ReplayFile(file).replayed(MethodRegistry())
        if found.difference is not None
    }


@pytest.mark.parametrize("selector", ["softmax", "top_k", "uniform"])
def test_what_the_naive_loop_draws_replays(file: Path, selector: str) -> None:
    pq.write_table(ledger(selector=selector), file)
    assert replayed(file) == {}


def test_what_an_older_service_wrote_replays_and_a_changed_draw_in_it_is_found(file: Path) -> None:
    old = ledger().drop_columns(sorted(FORMER_LACKS))
    old = old.replace_schema_metadata({**old.schema.metadata, FORMAT_KEY: FORMER_FORMAT})
    pq.write_table(old, file)
    assert replayed(file) == {}
    pq.write_table(changed(old, "indices", 6, _swapped), file)
    assert replayed(file).keys() == {6}


def _swapped(indices: list[int]) -> list[int]:
    return [indices[1], indices[0], *indices[2:]]


def _other(indices: list[int]) -> list[int]:
    return [*indices[:-1], next(i for i in range(ROWS) if i not in indices)]


@pytest.mark.parametrize(
    ("column", "change", "said"),
    [
        ("indices", _swapped, "draw 0 was"),
        ("indices", _other, f"draw {COUNT - 1} was"),
        ("indices", lambda _: [], "0 of 24 candidates were drawn"),
        ("indices", lambda _: list(range(30)), "30 of 24 candidates were drawn"),
        ("scores", lambda scores: [*scores[:-1], 1e6], "draw 0 was"),
        ("scores", lambda scores: scores[:-1], "it has 23 scores for 24 candidates"),
        ("scores", lambda _: None, "it has 0 scores for 24 candidates"),
        ("scores", lambda _: [float("nan")] * ROWS, "cannot be drawn again: 0 of 24 candidates have a finite score"),
        ("step", lambda _: 900, "draw 0 was"),
        ("step", lambda _: -1, "it has 24 scores"),
        ("rank", lambda _: 1, "draw 0 was"),
        ("rank", lambda _: -1, "cannot be drawn again"),
        ("candidates", lambda _: 25, "it has 24 scores for 25"),
        ("is_fallback", lambda _: True, "it has 24 scores for 24"),
        ("kind", lambda _: "sample", "its kind is 'sample', and it is no operation of a memory bank"),
        ("weights", lambda _: [1.0] * COUNT, "the importance weights differ"),
    ],
)
def test_whatever_is_changed_in_a_row_is_found_in_that_row_alone(
    file: Path, column: str, change: Callable[[Any], Any], said: str
) -> None:
    pq.write_table(changed(ledger(), column, 6, change), file)
    ((step, difference),) = replayed(file).items()
    assert step == (change(6) if column == "step" else 6)
    assert said in difference


def test_a_uniform_step_is_drawn_again_too(file: Path) -> None:
    pq.write_table(changed(ledger(), "indices", 0, _swapped), file)
    assert replayed(file).keys() == {0}


def test_importance_weights_are_compared_to_the_last_bit(file: Path) -> None:
    table = ledger(selector="proportional", importance_exponent=0.5)
    naive = replayed_weights(table, file)
    exact = table.set_column(
        table.schema.get_field_index("weights"), table.schema.field("weights"), pa.array(naive, pa.list_(pa.float32()))
    )
    pq.write_table(exact, file)
    assert replayed(file) == {}
    pq.write_table(
        changed(exact, "weights", 4, lambda kept: [float(np.nextafter(np.float32(kept[0]), np.float32(2))), *kept[1:]]),
        file,
    )
    assert replayed(file) == {4: "the importance weights differ"}


def replayed_weights(table: pa.Table, file: Path) -> list[list[float]]:
    """The weights that the service's own functions give for the naive loop's indices, close to its weights."""
    from preceptor_service.drawing import Draw, drawn_by_score, drawn_uniformly
    from preceptor_service.schedule import count_by_score

    spec = RunSpec("drawn", model="m", selector="proportional", importance_exponent=0.5, **SETTINGS)
    selector, found = MethodRegistry().selector("proportional"), []
    for row in table.to_pylist():
        draw, by_score = Draw(row["step"], 0, COUNT), count_by_score(spec, row["step"], COUNT)
        if by_score:
            indices, weights = drawn_by_score(spec, selector, np.array(row["scores"], np.float32), draw, by_score)
        else:
            indices, weights = drawn_uniformly(spec, selector, ROWS, draw)
        assert indices.tolist() == row["indices"]
        np.testing.assert_allclose(weights, row["weights"], rtol=1e-5)
        found.append(weights.tolist())
    return found


def test_a_file_that_is_no_ledger_is_refused(file: Path, tmp_path: Path) -> None:
    table = ledger()
    metadata = dict(table.schema.metadata)
    cases = {
        "its format is none, 1 and 2 are known": table.replace_schema_metadata(None),
        "its format is 3": table.replace_schema_metadata({**metadata, b"preceptor.ledger": b"3"}),
        "does not say which run": table.replace_schema_metadata({**metadata, b"preceptor.run": b"{}"}),
        r"lacks the columns \['scores'\]": table.drop_columns("scores"),
        r"lacks the columns \['kind'\]": table.drop_columns("kind"),
        r"lacks the columns \['step'\]": table.set_column(1, "step", table["step"].cast(pa.int32())),
    }
    for said, wrong in cases.items():
        pq.write_table(wrong, file)
        with pytest.raises(LedgerFileError, match=said):
            ReplayFile(file)
    file.write_bytes(b"PAR1 and nothing else PAR1")
    for unreadable in (file, tmp_path / "missing.parquet", tmp_path):
        with pytest.raises(LedgerFileError, match="cannot read"):
            ReplayFile(unreadable)


def test_the_command_says_that_all_is_the_same(file: Path) -> None:
    pq.write_table(ledger(), file)
    ran = CliRunner().invoke(app, ["ledger", "replay", str(file)])
    assert (ran.exit_code, ran.stdout) == (0, "all 10 steps of run drawn replay to what was selected, bit for bit\n")


def test_the_command_names_each_step_that_differs_and_fails(file: Path) -> None:
    table = ledger()
    for row in (3, 7):
        table = changed(table, "indices", row, _swapped)
    pq.write_table(table, file)
    ran = CliRunner().invoke(app, ["ledger", "replay", str(file)])
    assert ran.exit_code == 1
    assert [line.split(":")[0] for line in ran.stdout.splitlines()] == ["step 3, rank 0", "step 7, rank 0"]
    assert "2 of 10 steps of run drawn do not replay" in ran.stderr


def test_the_command_wants_the_settings_that_name_a_selector_of_the_operators(file: Path, tmp_path: Path) -> None:
    pq.write_table(ledger(selector="first_of_the_best", select_from_step=100), file)
    ran = CliRunner().invoke(app, ["ledger", "replay", str(file)])
    assert ran.exit_code == 1
    assert "selector is 'first_of_the_best'" in ran.stderr
    assert "--config" in ran.stderr
    config = tmp_path / "preceptor.yaml"
    config.write_text("selectors: {first_of_the_best: 'tests.service.methods:first_of_the_best'}\n")
    ran = CliRunner().invoke(app, ["ledger", "replay", str(file), "--config", str(config)])
    assert (ran.exit_code, ran.stderr) == (0, "")


def test_the_command_says_in_one_line_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["ledger", "replay", str(tmp_path / "missing.parquet")])
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert ran.stderr.startswith("preceptor: cannot read")
    assert "Traceback" not in ran.output


def test_the_columns_are_those_that_are_written() -> None:
    assert ledger().schema == SCHEMA
