"""A ledger holds what every answer was drawn from, as long as it promises, and never stands in a trainer's way."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from preceptor import Run, Selection, SelectionClient, batches
from preceptor.errors import InvalidSuperBatchError, LedgerOffError, RunNotFoundError, StepsNotKeptError
from preceptor.ledger import SCHEMA, per_candidate
from preceptor.v1 import ledger_pb2
from preceptor_service.app import RunningService
from preceptor_service.ledger.replay import ReplayFile
from preceptor_service.method_registry import SCORE_RULES, SELECTORS, MethodRegistry
from tests.service import digits
from tests.service.architectures import Gate
from tests.service.conftest import Control, Metrics, Store, metrics_of, target_of, wait_until
from tests.service.raw import RawChannel

METHODS = MethodRegistry(
    {"closest_losses": "tests.service.methods:closest_losses"},
    {"first_of_the_best": "tests.service.methods:first_of_the_best"},
)
COUNT = 8


@pytest.fixture(autouse=True)
def alive(control: Control) -> Iterator[None]:
    yield
    control.check()


def ready(client: SelectionClient, run_id: str, **settings: Any) -> Run:
    """A run with a ledger and weights, those of the learner pushed at step 0."""
    run = client.create_run(digits.spec(run_id, ledger=True, **settings))
    run.push_reference(digits.weights(2))
    run.push_weights(digits.weights(1), step=0)
    return run


def select(run: Run, step: int, **arguments: Any) -> Selection:
    return run.select(digits.candidates(step), COUNT, step=step, **arguments)


def differences(file: Path) -> list[str]:
    return [found.difference for found in ReplayFile(file).replayed(METHODS) if found.difference is not None]


def segments(store: Path, run_id: str) -> list[Path]:
    return sorted((store / "runs" / run_id / "ledger").iterdir())


@pytest.mark.parametrize("selector", [*SELECTORS, "first_of_the_best"])
@pytest.mark.parametrize("score", [*SCORE_RULES, "closest_losses"])
def test_every_rule_and_selector_replays_bit_for_bit_whatever_the_schedule(
    client: SelectionClient, run_id: str, tmp_path: Path, score: str, selector: str
) -> None:
    schedule = {"select_from_step": 2, "select_until_step": 8, "warm_up_steps": 3, "uniform_share": 0.25}
    run = ready(client, run_id, score=score, selector=selector, temperature=3.0, seed=11, **schedule)
    answers = [select(run, step, rank=step % 2) for step in range(10)]
    rows = run.ledger().to_pylist()
    assert [(row["step"], row["rank"]) for row in rows] == [(answer.step, answer.rank) for answer in answers]
    assert [row["indices"] for row in rows] == [answer.indices.tolist() for answer in answers]
    for row, answer in zip(rows, answers, strict=True):
        recorded = np.array([] if row["scores"] is None else row["scores"], np.float32)
        assert recorded.tobytes() == answer.scores.tobytes()
        assert row["weights"] == (None if answer.weights is None else answer.weights.tolist())
    assert {row["step"] for row in rows if row["scores"] is None} == {0, 1, 2, 8, 9}
    assert run.export_ledger(tmp_path / "ledger.parquet").steps == 10
    assert differences(tmp_path / "ledger.parquet") == []


def test_a_row_says_what_was_offered_and_what_stood_behind_the_scores(client: SelectionClient, run_id: str) -> None:
    run = ready(client, run_id)
    pushed = run.push_weights(digits.weights(5), step=3)
    numbers, texts = np.arange(32) + 2**40, [f"ex-{i}" for i in range(32)]
    answers = [select(run, 4, example_id=numbers), select(run, 5, example_id=texts), select(run, 6)]
    table = run.ledger()
    assert table.schema == SCHEMA
    rows = table.to_pylist()
    assert [row["example_id"] for row in rows] == [numbers.tolist(), None, None]
    assert [row["example_id_text"] for row in rows] == [None, texts, None]
    encoded = [batches.encode(digits.candidates(step), ids) for step, ids in ((4, numbers), (5, texts), (6, None))]
    assert [row["digest"] for row in rows] == [batch.digest for batch in encoded]
    for row, answer in zip(rows, answers, strict=True):
        assert row["candidates"] == 32
        assert (row["learner_version"], row["learner_step"]) == (pushed.version, 3)
        assert row["reference_digest"] == run.status().reference_digest
        assert row["reference_fold_1_digest"] is None
        assert (row["is_fallback"], row["fallback_reason"]) == (False, None)
        assert np.array(row["scores"], np.float32).tobytes() == answer.scores.tobytes()


def test_both_references_of_a_run_with_two_are_named(client: SelectionClient, run_id: str) -> None:
    run = client.create_run(digits.spec(run_id, ledger=True, cross_reference=True))
    digests = [run.push_reference(digits.weights(seed), fold=fold).digest for fold, seed in enumerate((2, 3))]
    run.push_weights(digits.weights(1), step=0)
    select(run, 1, example_id=np.arange(32))
    (row,) = run.ledger().to_pylist()
    assert [row["reference_digest"], row["reference_fold_1_digest"]] == digests


def test_a_stale_fallback_is_recorded_with_its_reason_and_replays(
    client: SelectionClient, run_id: str, tmp_path: Path
) -> None:
    run = ready(client, run_id, max_staleness_steps=5, on_stale="uniform")
    select(run, 5)
    fallback = select(run, 6)
    assert fallback.is_fallback
    row = run.ledger(from_step=6).to_pylist()[0]
    assert (row["is_fallback"], row["fallback_reason"], row["scores"]) == (True, "stale", None)
    assert (row["learner_version"], row["reference_digest"]) == (None, None)
    assert row["indices"] == digits.as_uniform(run.spec, 32, COUNT, 6)
    run.export_ledger(tmp_path / "ledger.parquet")
    assert differences(tmp_path / "ledger.parquet") == []


def test_a_fallback_at_the_deadline_is_recorded_with_its_reason_and_replays(
    client: SelectionClient, run_id: str, gate: Gate, tmp_path: Path
) -> None:
    run = client.create_run(digits.gated_spec(run_id, ledger=True, deadline_s=0.2, on_deadline="uniform"))
    run.push_weights(digits.gated_weights(1), step=0)
    gate.close()
    assert run.select(digits.gated_candidates(1), 4, step=1).is_fallback
    gate.open()
    (row,) = run.ledger().to_pylist()
    assert (row["fallback_reason"], row["candidates"]) == ("deadline", 8)
    run.export_ledger(tmp_path / "ledger.parquet")
    assert differences(tmp_path / "ledger.parquet") == []


def test_candidates_without_a_finite_score_are_recorded_and_replay(
    client: SelectionClient, run_id: str, tmp_path: Path
) -> None:
    run = client.create_run(digits.spec(run_id, ledger=True, score="hard_learner", model_config=digits.FLOAT_MODEL))
    run.push_weights(digits.weights(1, digits.FLOAT_MODEL), step=0)
    batch = digits.float_candidates(1)
    batch["image"][3] *= np.float32(3e38)
    answer = run.select(batch, COUNT, step=1)
    assert answer.non_finite_count == 1
    (row,) = run.ledger().to_pylist()
    assert np.array(row["scores"], np.float32).tobytes() == answer.scores.tobytes()
    run.export_ledger(tmp_path / "ledger.parquet")
    assert differences(tmp_path / "ledger.parquet") == []


def test_an_answer_that_is_given_again_and_a_super_batch_that_fails_make_no_row(
    client: SelectionClient, target: str, run_id: str
) -> None:
    run = ready(client, run_id)
    first = select(run, 1)
    with SelectionClient(target) as another:
        again = select(another.get_run(run_id), 1)
    with pytest.raises(InvalidSuperBatchError, match="sub_batch_size"):
        run.select(digits.candidates(2), 0, step=2)
    assert again.indices.tolist() == first.indices.tolist()
    assert run.ledger()["step"].to_pylist() == [1]


def test_a_range_gives_its_steps_alone(client: SelectionClient, run_id: str) -> None:
    run = ready(client, run_id, score="uniform")
    for step in range(20):
        select(run, step)
    assert run.ledger(from_step=7, to_step=9)["step"].to_pylist() == [7, 8, 9]
    assert run.ledger(from_step=18)["step"].to_pylist() == [18, 19]
    assert run.ledger(to_step=0)["step"].to_pylist() == [0]


def test_a_new_run_has_an_empty_ledger_and_nothing_to_export(
    client: SelectionClient, run_id: str, tmp_path: Path
) -> None:
    run = ready(client, run_id)
    assert len(run.ledger()) == 0
    with pytest.raises(StepsNotKeptError, match="holds nothing to write yet"):
        run.export_ledger(tmp_path / "ledger.parquet")
    assert list(tmp_path.iterdir()) == []


def test_steps_that_are_not_there_are_refused_with_what_is(
    client: SelectionClient, raw: RawChannel, run_id: str
) -> None:
    run = ready(client, run_id, score="uniform")
    with pytest.raises(StepsNotKeptError, match="is empty: nothing was selected, remembered or sampled yet"):
        run.ledger(from_step=0)
    for step in (3, 9):
        select(run, step)
    with pytest.raises(StepsNotKeptError, match="holds steps 3 to 9, and none from 10 on"):
        run.ledger(from_step=10)
    with pytest.raises(StepsNotKeptError, match="holds steps 3 to 9, and none from 0 to 2"):
        run.ledger(to_step=2)
    with pytest.raises(StepsNotKeptError, match="2 of the steps from 3 to 9, and none that was asked for"):
        run.ledger(from_step=4, to_step=8)
    for backwards in ({"from_step": 5, "to_step": 4}, {"from_step": -1}, {"to_step": -1}):
        with pytest.raises(ValueError, match="the range starts at 0 and ends after it begins"):
            run.ledger(**backwards)
        status = raw.call("ReadLedger", ledger_pb2.ReadLedgerRequest(run_id=run_id, **backwards)).status()
        assert (status.code, status.reason) == ("INVALID_ARGUMENT", "MESSAGE_INVALID")


def test_a_run_that_asked_for_none_has_no_ledger(run: Run, run_id: str, service_store: Store) -> None:
    select(run, 1)
    with pytest.raises(LedgerOffError, match=r"keeps no ledger, and cannot begin one; create a run with"):
        run.ledger()
    assert not (service_store.path / "runs" / run_id / "ledger").exists()


def test_an_unknown_run_has_none(raw: RawChannel) -> None:
    status = raw.call("ReadLedger", ledger_pb2.ReadLedgerRequest(run_id="nobody-knows")).status()
    assert (status.code, status.reason) == ("NOT_FOUND", "RUN_NOT_FOUND")


def test_the_ledger_goes_with_the_run(client: SelectionClient, run_id: str, service_store: Store) -> None:
    run = ready(client, run_id, score="uniform")
    select(run, 1)
    run.ledger()
    assert segments(service_store.path, run_id)
    select(run, 2)  # waits to be written when the run goes
    client.delete_run(run_id)
    with pytest.raises(RunNotFoundError):
        run.ledger()
    anew = ready(client, run_id, score="uniform", seed=1)
    assert len(anew.ledger()) == 0
    select(anew, 3)
    assert anew.ledger()["step"].to_pylist() == [3]


def test_a_ledger_outlives_its_gateway_and_goes_on(start: Callable[..., RunningService], tmp_path: Path) -> None:
    kept = []
    for life in range(2):
        service = start(ledger={"flush_s": 3600.0})  # only the stop writes
        with SelectionClient(target_of(service)) as client:
            run = ready(client, "long-lived") if not life else client.get_run("long-lived")
            for step in range(life * 5, life * 5 + 5):
                select(run, step)
        service.stop()
        kept.append(len(segments(tmp_path / "store", "long-lived")))
    assert kept == [1, 2]
    with SelectionClient(target_of(start())) as client:
        run = client.get_run("long-lived")
        assert run.ledger()["step"].to_pylist() == list(range(10))
        run.export_ledger(tmp_path / "ledger.parquet")
    assert differences(tmp_path / "ledger.parquet") == []


def test_what_several_gateways_answered_is_one_ledger(start: Callable[..., RunningService], tmp_path: Path) -> None:
    services = [start(ledger={"flush_s": 0.05}) for _ in range(2)]
    with SelectionClient(target_of(services[0])) as here, SelectionClient(target_of(services[1])) as there:
        runs = [ready(here, "shared"), there.get_run("shared")]
        for step in range(10):
            select(runs[step % 2], step)
        wait_until(lambda: len(runs[0].ledger()) == 10, "both wrote what they answered")
        assert sorted(runs[1].ledger()["step"].to_pylist()) == list(range(10))
        runs[0].export_ledger(tmp_path / "ledger.parquet")
    assert differences(tmp_path / "ledger.parquet") == []


def test_the_oldest_steps_go_first_and_it_is_said_which_are_left(start: Callable[..., RunningService]) -> None:
    service = start(ledger={"max_steps_per_run": 16})
    with SelectionClient(target_of(service)) as client:
        run = ready(client, "bounded", score="uniform")
        for step in range(40):
            select(run, step)
        kept = run.ledger()["step"].to_pylist()
        assert kept == list(range(40 - len(kept), 40))
        assert 14 <= len(kept) <= 16
        with pytest.raises(StepsNotKeptError, match=f"holds steps {kept[0]} to 39, and none from 0 to 9; older ones"):
            run.ledger(to_step=9)
        metrics = metrics_of(service)
        assert metrics.value("preceptor_ledger_steps_total", run="bounded") == 40
        assert metrics.value("preceptor_ledger_expired_steps_total", run="bounded") == 40 - len(kept)
        assert metrics.value("preceptor_ledger_lost_steps_total", run="bounded") == 0
        client.delete_run("bounded")
        assert "bounded" not in metrics.runs()


def test_a_damaged_segment_is_left_out_and_named(
    start: Callable[..., RunningService], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = start(ledger={"max_steps_per_run": 80})
    with SelectionClient(target_of(service)) as client:
        run = ready(client, "dented", score="uniform")
        for step in range(30):
            select(run, step)
        run.ledger()
        first, dented, last = segments(tmp_path / "store", "dented")
        content = bytearray(dented.read_bytes())
        content[len(content) // 2] ^= 1
        dented.write_bytes(content)
        with caplog.at_level(logging.WARNING, "preceptor.ledger"):
            left = run.ledger()
        assert left["step"].to_pylist() == [*range(10), *range(20, 30)]
        assert "is damaged: 10 of the steps from 10 to 19 are missing" in caplog.text
        exported = run.export_ledger(tmp_path / "ledger.parquet")
        assert exported.steps == 20
        assert dented.name in exported.damaged[0]
        for broken in (first, last):
            broken.write_bytes(b"")
        assert len(run.ledger()) == 0
        with pytest.raises(StepsNotKeptError, match=r"nothing to write; segment .* is damaged"):
            run.export_ledger(tmp_path / "nothing.parquet")


def test_a_store_that_takes_nothing_costs_the_ledger_its_oldest_steps_and_the_trainer_nothing(
    start: Callable[..., RunningService], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    link = os.link

    def full(source: Any, target: Any) -> None:
        if "/ledger/" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        link(source, target)

    service = start(ledger={"flush_s": 0.05, "buffer_bytes": 10_000})
    metrics = metrics_of(service)
    with SelectionClient(target_of(service)) as client:
        run = ready(client, "hungry")
        monkeypatch.setattr(os, "link", full)
        answers = [select(run, step) for step in range(60)]
        wait_until(lambda: "the store does not take the ledger" in caplog.text, "it is said")
        for step, answer in enumerate(answers):
            batch = digits.candidates(step)
            expected = digits.expected(run.spec, batch, digits.weights(1), digits.weights(2), COUNT, step)
            assert answer.indices.tolist() == expected
        assert 0 < metrics.value("preceptor_ledger_buffer_bytes") <= 10_000
        lost = metrics.value("preceptor_ledger_lost_steps_total", run="hungry", reason="buffer")
        assert 30 < lost < 60
        monkeypatch.undo()
        kept = run.ledger()["step"].to_pylist()
        assert kept == sorted(set(kept))
        assert len(kept) + lost == 60
        assert kept[-10:] == list(range(50, 60))
        assert metrics.value("preceptor_ledger_steps_total", run="hungry") == len(kept)
    assert caplog.text.count("the store does not take the ledger") == 1


def test_a_super_batch_larger_than_the_bound_is_counted_and_not_kept(start: Callable[..., RunningService]) -> None:
    service = start(ledger={"max_bytes_per_run": 6_000})
    with SelectionClient(target_of(service)) as client:
        run = ready(client, "greedy", score="hard_learner")
        run.select(digits.candidates(1, rows=1500), COUNT, step=1)
        assert len(run.ledger()) == 0
        metrics = metrics_of(service)
        assert metrics.value("preceptor_ledger_lost_steps_total", run="greedy", reason="too_large") == 1


def test_the_ledger_of_a_run_on_the_wire_is_one_parquet_file_that_others_read(
    client: SelectionClient, run_id: str, tmp_path: Path
) -> None:
    run = ready(client, run_id)
    for step in range(5):
        select(run, step, example_id=np.arange(32) + step)
    run.export_ledger(tmp_path / "ledger.parquet")
    with pytest.raises(FileExistsError, match="name a new file"):
        run.export_ledger(tmp_path / "ledger.parquet")
    frame = pq.read_table(tmp_path / "ledger.parquet").to_pandas()
    assert frame["step"].tolist() == [0, 1, 2, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger.parquet"]


def test_unfolded_it_has_one_row_per_candidate(client: SelectionClient, run_id: str) -> None:
    run = ready(client, run_id, selector="proportional", score="hard_learner", select_until_step=3)
    answers = [
        select(run, 1, example_id=np.arange(32) * 10),
        run.select(digits.candidates(2, rows=9), 3, step=2, example_id=[f"t{i}" for i in range(9)]),
        run.select(digits.candidates(3, rows=5), 2, step=3),
    ]
    rows = per_candidate(run.ledger()).to_pylist()
    assert len(rows) == 32 + 9 + 5
    assert [row["position"] for row in rows] == [*range(32), *range(9), *range(5)]
    assert [row["example_id"] for row in rows] == [*range(0, 320, 10), *[None] * 14]
    assert [row["example_id_text"] for row in rows] == [*[None] * 32, *[f"t{i}" for i in range(9)], *[None] * 5]
    for answer in answers:
        mine = [row for row in rows if row["step"] == answer.step]
        chosen = sorted((row for row in mine if row["drawn"] is not None), key=lambda row: row["drawn"])
        assert [row["position"] for row in chosen] == answer.indices.tolist()
        assert answer.weights is not None
        assert [row["weight"] for row in chosen] == answer.weights.tolist()
        assert [row["score"] for row in mine] == (answer.scores.tolist() or [None] * len(mine))


def test_what_is_unfolded_may_be_empty_or_without_weights(client: SelectionClient, run_id: str) -> None:
    run = ready(client, run_id)
    assert len(per_candidate(run.ledger())) == 0
    select(run, 1)
    assert set(per_candidate(run.ledger())["weight"].to_pylist()) == {None}


def test_what_the_ledgers_hold_is_shown(run_id: str, client: SelectionClient, metrics: Metrics) -> None:
    run = ready(client, run_id, score="uniform")
    select(run, 1)
    run.ledger()
    assert metrics.value("preceptor_ledger_bytes") > 0
    assert metrics.value("preceptor_ledger_limit_bytes") == 4096 * 1024 * 1024
    assert metrics.value("preceptor_ledger_steps_total", run=run_id) == 1
