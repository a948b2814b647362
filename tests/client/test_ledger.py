"""What the client makes of a ledger's segments, whatever the service answers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preceptor import Run
from preceptor.errors import InternalError, PreceptorError, RunNotFoundError, StepsNotKeptError, UnavailableError
from preceptor.ledger import FORMAT, FORMAT_KEY, FORMER_FORMAT, FORMER_LACKS, RUN_KEY, SCHEMA, per_candidate
from preceptor.v1 import ledger_pb2
from tests.client.fake_service import Abort, FakeService

KEPT = ledger_pb2.ReadLedgerResponse(kept=ledger_pb2.LedgerKept(steps=9, first_step=1, last_step=9, total_bytes=99))
DAMAGE = ledger_pb2.ReadLedgerResponse(
    damage=ledger_pb2.LedgerDamage(name="runs/digits/ledger/x", steps=3, first_step=4, last_step=6)
)


def rows(*steps: int, run: bytes = b"{}", **more: Any) -> pa.Table:
    """A table with a row per step, answered at that microsecond."""
    blank: dict[str, Any] = {
        "rank": 0,
        "kind": "select",
        "candidates": 2,
        "is_fallback": False,
        "digest": b"d",
        "indices": [1],
    }
    made = [{name: blank.get(name) for name in SCHEMA.names} | {"time": step, "step": step} for step in steps]
    table = pa.Table.from_pylist(made, SCHEMA.with_metadata({FORMAT_KEY: FORMAT, RUN_KEY: run}))
    for name, values in more.items():
        table = table.append_column(name, values)
    return table


def former(*steps: int) -> pa.Table:
    """The same as a service wrote it that kept no rows of memory banks."""
    table = rows(*steps).drop_columns(sorted(FORMER_LACKS))
    return table.replace_schema_metadata({**table.schema.metadata, FORMAT_KEY: FORMER_FORMAT})


def segment(table: pa.Table | bytes) -> ledger_pb2.ReadLedgerResponse:
    if isinstance(table, bytes):
        return ledger_pb2.ReadLedgerResponse(segment=ledger_pb2.LedgerSegment(parquet=table))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return segment(sink.getvalue().to_pybytes())


def test_an_answer_that_two_segments_hold_is_one_row(service: FakeService, run: Run, tmp_path: Path) -> None:
    service.ledger = [KEPT, segment(rows(1, 2)), segment(rows(1, 2, 3)), segment(rows(4))]
    assert run.ledger()["step"].to_pylist() == [1, 2, 3, 4]
    assert run.export_ledger(tmp_path / "ledger.parquet").steps == 4
    assert pq.read_table(tmp_path / "ledger.parquet")["step"].to_pylist() == [1, 2, 3, 4]


def test_columns_of_a_newer_service_are_left_out(service: FakeService, run: Run) -> None:
    service.ledger = [KEPT, segment(rows(1, mood=pa.array(["good"])))]
    assert run.ledger().schema == SCHEMA


def test_what_an_older_service_wrote_is_read_beside_what_a_newer_one_did(
    service: FakeService, run: Run, tmp_path: Path
) -> None:
    service.ledger = [KEPT, segment(former(1, 2)), segment(rows(3))]
    table = run.ledger()
    assert (table.schema, table["kind"].to_pylist()) == (SCHEMA, ["select"] * 3)
    assert table["bank_operation"].null_count == 3
    run.export_ledger(tmp_path / "ledger.parquet")
    assert pq.read_schema(tmp_path / "ledger.parquet").metadata[FORMAT_KEY] == FORMAT
    drawn = per_candidate(former(1, 2))
    assert drawn["drawn"].to_pylist() == [None, 0] * 2
    assert drawn["kind"].to_pylist() == ["select"] * 4


def test_operations_of_a_bank_at_one_step_and_time_are_all_there(service: FakeService, run: Run) -> None:
    table = rows(1, 1, 1)
    at = table.schema.get_field_index("bank_operation")
    table = table.set_column(at, table.schema.field(at), pa.array([None, 1, 2], pa.int64()))
    service.ledger = [KEPT, segment(table), segment(table)]
    assert run.ledger()["bank_operation"].to_pylist() == [None, 1, 2]


def test_unfolded_a_sample_is_what_was_drawn_and_a_super_batch_what_was_offered() -> None:
    made: list[dict[str, Any]] = [
        {"kind": "select", "candidates": 3, "indices": [2, 0], "scores": [0.5, 1.5, 2.5], "learner_version": 4},
        {"kind": "remember", "candidates": 2, "example_id": [8, 9], "scores": [1.0, 2.0], "learner_version": 5},
        {"kind": "sample", "candidates": 40, "example_id": [9, 7], "scores": [2.0, 3.0], "weights": [1.0, 0.5]}
        | {"learner_versions": [5, 3], "learner_steps": [10, 0]},
        {"kind": "sample", "candidates": 40, "example_id_text": ["x"], "scores": [4.0]},
    ]
    blank = {"time": 0, "step": 1, "rank": 0, "is_fallback": False}
    table = pa.Table.from_pylist([{**dict.fromkeys(SCHEMA.names), **blank, **one} for one in made], SCHEMA)
    found = per_candidate(table).to_pydict()
    assert found["kind"] == ["select"] * 3 + ["remember"] * 2 + ["sample"] * 3
    assert found["example_id"] == [None] * 3 + [8, 9, 9, 7, None]
    assert found["example_id_text"] == [None] * 7 + ["x"]
    assert found["score"] == [0.5, 1.5, 2.5, 1.0, 2.0, 2.0, 3.0, 4.0]
    assert found["position"] == [0, 1, 2, 0, 1, None, None, None]
    assert found["drawn"] == [1, None, 0, None, None, 0, 1, 0]
    assert found["weight"] == [None] * 5 + [1.0, 0.5, None]
    assert found["learner_version"] == [4, 4, 4, 5, 5, 5, 3, None]


def test_what_lies_outside_the_range_is_left_out(service: FakeService, run: Run) -> None:
    service.ledger = [KEPT, segment(rows(1, 2)), segment(rows(3, 4))]
    assert run.ledger(from_step=2, to_step=3)["step"].to_pylist() == [2, 3]
    with pytest.raises(StepsNotKeptError, match="holds 9 of the steps from 1 to 9, and none that was asked for"):
        run.ledger(from_step=7)


def test_damage_is_told_and_the_rest_is_returned(
    service: FakeService, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service.ledger = [KEPT, segment(rows(1)), DAMAGE, segment(rows(9))]
    said = "segment runs/digits/ledger/x is damaged: 3 of the steps from 4 to 6 are missing"
    with caplog.at_level(logging.WARNING, "preceptor.ledger"):
        assert run.ledger()["step"].to_pylist() == [1, 9]
    assert caplog.messages == [f"run digits: {said}"]
    assert run.export_ledger(tmp_path / "ledger.parquet").damaged == (said,)


@pytest.mark.parametrize("content", [b"", b"no Parquet", rows(1).drop_columns("scores")], ids=["", "noise", "lacking"])
def test_a_segment_that_cannot_be_read_is_an_internal_error(
    service: FakeService, run: Run, tmp_path: Path, content: bytes | pa.Table
) -> None:
    service.ledger = [KEPT, segment(rows(1)), segment(content)]
    with pytest.raises(InternalError, match="a segment that cannot be read"):
        run.ledger()
    with pytest.raises(InternalError, match="a segment that cannot be read"):
        run.export_ledger(tmp_path / "ledger.parquet")
    assert list(tmp_path.iterdir()) == []


def test_two_lives_of_a_run_are_never_one_ledger(service: FakeService, run: Run) -> None:
    service.ledger = [KEPT, segment(rows(1, run=b"former")), segment(rows(1, run=b"latter"))]
    with pytest.raises(RunNotFoundError, match="was deleted and created anew while it was read"):
        run.ledger()


@pytest.mark.parametrize(
    ("abort", "error"),
    [
        (Abort("UNAVAILABLE", "GATEWAY_DRAINING", "goes away"), UnavailableError),
        (Abort("NOT_FOUND", "RUN_NOT_FOUND", "is gone"), RunNotFoundError),
    ],
)
def test_a_call_that_breaks_off_leaves_no_file(
    service: FakeService, run: Run, tmp_path: Path, abort: Abort, error: type[PreceptorError]
) -> None:
    service.ledger = [KEPT, segment(rows(1)), abort]
    with pytest.raises(error):
        run.export_ledger(tmp_path / "ledger.parquet")
    with pytest.raises(error):
        run.ledger()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_os_error(service: FakeService, run: Run, tmp_path: Path) -> None:
    service.ledger = [KEPT, segment(rows(1))]
    with pytest.raises(FileNotFoundError):
        run.export_ledger(tmp_path / "missing" / "ledger.parquet")
