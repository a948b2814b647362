"""Run records: created once, read back as they were, gone when deleted."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from preceptor import CoTraining, RunSpec
from preceptor.errors import DiskFullError, InternalError, RunExistsError, RunNotFoundError, UnavailableError
from preceptor.runs import ConfigValue
from preceptor_service.run_store import RunRecord, RunStore, _difference
from tests.stores import Place

FULL = RunSpec(
    run_id="full",
    model="small_cnn",
    model_config={"a": 1, "b": 0.1, "c": True, "d": "text", "e": (1, 2), "f": (0.1, 0.2), "g": -(2**62)},
    reference_model="other",
    reference_model_config={"width": 3},
    reference_digest="sha256:" + "0" * 64,
    score="hard_learner",
    selector="top_k",
    temperature=0.1,
    seed=2**63 - 1,
    max_staleness_steps=0,
    on_stale="wait",
    deadline_s=0.123456789,
    on_deadline="uniform",
)


def record(spec: RunSpec = FULL, rows: int = 64) -> RunRecord:
    return RunRecord(spec, 1234.5, rows)


def test_a_record_is_read_back_as_it_was_by_another_store_object(place: Place) -> None:
    RunStore(place.open()).create(record())
    assert RunStore(place.open()).read("full") == record()


def test_creating_the_same_spec_again_keeps_the_first_record(place: Place) -> None:
    store = RunStore(place.open())
    store.create(record(rows=64))
    assert store.create(record(rows=128)).micro_batch_rows == 64


def test_another_spec_under_the_same_name_is_refused_and_the_difference_named(place: Place) -> None:
    store = RunStore(place.open())
    store.create(record())
    with pytest.raises(RunExistsError, match="exists with other settings: seed is 9223372036854775807, asked for 3;"):
        store.create(record(RunSpec(**{**vars(FULL), "seed": 3})))


def test_of_settings_that_differ_each_is_named_and_none_at_length() -> None:
    settings: dict[str, ConfigValue] = {f"list_{number}": tuple(range(10**17, 10**17 + 64)) for number in range(60)}
    said = _difference(
        replace(FULL, model_config={**settings, "width": 2, "depth": 1}, co_training=CoTraining(lag=1)),
        replace(FULL, model_config={**settings, "width": 3, "note": "x" * 250}, co_training=CoTraining(lag=2)),
    )
    assert said.startswith("run 'full' exists with other settings: model_config.width is 2, asked for 3, ")
    assert "model_config.depth is 1, asked for not given" in said
    assert "model_config.note is not given, asked for 'xxx" in said
    assert "co_training.lag is 1, asked for 2" in said
    assert len(said) < 500


def test_of_many_creations_at_once_one_record_wins_and_all_see_it(place: Place) -> None:
    stores = [RunStore(place.open()) for _ in range(16)]
    with ThreadPoolExecutor(16) as threads:
        records = list(threads.map(lambda pair: pair[1].create(record(rows=pair[0] + 1)), enumerate(stores)))
    assert len({stored.micro_batch_rows for stored in records}) == 1
    assert place.names("runs/full") == ["run.json"]


def test_a_deleted_run_is_not_found(place: Place) -> None:
    store = RunStore(place.open())
    store.create(record())
    store.delete("full")
    assert store.list() == []
    with pytest.raises(RunNotFoundError, match="there is no run 'full'"):
        store.read("full")
    with pytest.raises(RunNotFoundError):
        store.delete("full")


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"spec": {"runId": 3}, "create_time_s": 1, "micro_batch_rows": 1}']
)
def test_a_damaged_record_is_an_error_that_names_the_run(place: Place, content: str) -> None:
    store = RunStore(place.open())
    store.create(record())
    place.write("runs/full/run.json", content.encode())
    with pytest.raises(InternalError, match="the record of run 'full' is damaged"):
        store.read("full")


def test_all_records_are_read_once_and_others_of_their_names_anew(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, elsewhere = RunStore(place.open()), RunStore(place.open())
    specs = [replace(FULL, run_id=f"run-{number}") for number in range(3)]
    for spec in specs:
        elsewhere.create(record(spec))
    read: list[str] = []
    reading = RunStore.read

    def noted(self: RunStore, run_id: str) -> RunRecord:
        read.append(run_id)
        return reading(self, run_id)

    monkeypatch.setattr(RunStore, "read", noted)
    assert store.records() == [record(spec) for spec in specs]
    assert sorted(read) == ["run-0", "run-1", "run-2"]
    assert store.records() == [record(spec) for spec in specs]
    assert len(read) == 3
    elsewhere.delete("run-0")
    elsewhere.delete("run-1")
    elsewhere.create(RunRecord(replace(FULL, run_id="run-1", seed=7), 1235.5, 64, "team-b"))
    assert [(found.spec.run_id, found.spec.seed, found.owner) for found in store.records()] == [
        ("run-1", 7, "team-b"),
        ("run-2", FULL.seed, None),
    ]
    assert sorted(read[3:]) == ["run-1"]


def test_a_damaged_record_is_not_among_all(place: Place) -> None:
    store = RunStore(place.open())
    store.create(record())
    store.create(record(replace(FULL, run_id="another")))
    place.write("runs/full/run.json", b"{}")
    assert [found.spec.run_id for found in store.records()] == ["another"]


def test_a_life_of_a_run_is_told_from_the_next(place: Place) -> None:
    store = RunStore(place.open())
    former = store.create(record())
    assert store.holds(former)
    store.delete("full")
    assert not store.holds(former)
    latter = store.create(RunRecord(FULL, 1235.5, 64))
    assert store.holds(latter)
    assert not store.holds(former)


def test_a_record_and_its_directory_are_durable_before_creation_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(tmp_path)
    named: list[tuple[int, bool]] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        named.append((os.fstat(descriptor).st_ino, (tmp_path / "runs/full/run.json").exists()))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", noted)
    store.create(record())
    assert ((tmp_path / "runs/full").stat().st_ino, True) in named
    assert (tmp_path / "runs").stat().st_ino in {inode for inode, _ in named}


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError), (errno.EACCES, UnavailableError)],
)
def test_only_a_full_disk_is_called_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    store = RunStore(tmp_path)
    monkeypatch.setattr("os.fsync", failing)
    with pytest.raises(error, match=os.strerror(number)):
        store.create(record())
    assert store.list() == []
