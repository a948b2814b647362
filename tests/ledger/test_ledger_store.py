"""Segments in the store: bounded, whole or not there, of one life of a run; in a directory and in an object store."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preceptor.runs import RunSpec
from preceptor_service.config import LedgerConfig, WeightsConfig
from preceptor_service.ledger.entries import Entry, from_parquet, to_parquet, to_table
from preceptor_service.ledger.ledger_store import Batch, DamagedSegmentError, LedgerStore, Written
from preceptor_service.run_store import RunRecord, RunStore
from preceptor_service.storage import Storage, open_storage
from tests.stores import Place


def entry(step: int, rows: int = 8, time_us: int | None = None) -> Entry:
    """An answer whose numbers do not compress."""
    rng = np.random.default_rng(step)
    return Entry(
        time_us=1_700_000_000_000_000 + step if time_us is None else time_us,
        step=step,
        rank=0,
        candidates=rows,
        learner_version=1,
        learner_step=0,
        reference_digest=None,
        reference_fold_1_digest=None,
        fallback_reason=None,
        digest=rng.bytes(32),
        example_id=pa.array(rng.integers(0, 2**62, rows)),
        scores=rng.standard_normal(rows).astype(np.float32),
        indices=np.arange(1),
        weights=np.empty(0, np.float32),
    )


def record_of(run_id: str, storage: Storage, create_time_s: float = 1.0) -> RunRecord:
    return RunStore(storage).create(RunRecord(RunSpec(run_id, model="small_cnn", ledger=True), create_time_s, 16))


def write(store: LedgerStore, record: RunRecord, entries: Sequence[Entry]) -> Written:
    written = store.write([Batch(record, entries)])
    assert written.error is None
    return written


def steps_of(store: LedgerStore, run_id: str) -> list[int]:
    return [
        step for segment in store.segments(run_id) for step in from_parquet(store.read(segment))["step"].to_pylist()
    ]


@pytest.fixture
def storage(place: Place) -> Storage:
    return place.open()


def test_what_was_written_is_read_back_by_another_process(place: Place, storage: Storage) -> None:
    record = record_of("a", storage)
    entries = [entry(step) for step in range(5)]
    written = write(LedgerStore(storage, LedgerConfig()), record, entries)
    reader = LedgerStore(place.open(), LedgerConfig())
    (segment,) = reader.segments("a")
    assert from_parquet(reader.read(segment)) == to_table(record, entries)
    assert (segment.steps, segment.first_step, segment.last_step) == (5, 0, 4)
    assert (written.steps["a"], written.total_bytes) == (5, segment.total_bytes)


def test_a_small_segment_is_replaced_until_it_is_large_so_that_slow_trainers_have_few(storage: Storage) -> None:
    record, store = record_of("slow", storage), LedgerStore(storage, LedgerConfig())
    for step in range(30):
        write(store, record, [entry(step, rows=4000)])
    segments = store.segments("slow")
    assert 2 <= len(segments) <= 10
    assert all(segment.total_bytes >= 256 * 1024 for segment in segments[:-1])
    assert steps_of(store, "slow") == list(range(30))


def test_each_writer_replaces_its_own_segments_alone(storage: Storage) -> None:
    record = record_of("two", storage)
    writers = [LedgerStore(storage, LedgerConfig()) for _ in range(2)]
    for step in range(6):
        write(writers[step % 2], record, [entry(step)])
    assert len(writers[0].segments("two")) == 2
    assert sorted(steps_of(writers[1], "two")) == list(range(6))


def test_a_damaged_small_segment_is_left_where_it_is(place: Place, storage: Storage) -> None:
    record, store = record_of("dented", storage), LedgerStore(storage, LedgerConfig())
    write(store, record, [entry(1)])
    (dented,) = store.segments("dented")
    place.write(dented.path, b"nothing like it")
    write(store, record, [entry(2)])
    assert len(store.segments("dented")) == 2
    with pytest.raises(DamagedSegmentError):
        store.read(dented)
    assert from_parquet(store.read(store.segments("dented")[1]))["step"].to_pylist() == [2]


def test_nothing_is_written_to_a_run_that_is_gone_or_of_another_life(place: Place, storage: Storage) -> None:
    store = LedgerStore(storage, LedgerConfig())
    former = record_of("phoenix", storage, create_time_s=1.0)
    write(store, former, [entry(1)])
    RunStore(storage).delete("phoenix")
    assert place.names("runs/phoenix") == []
    assert write(store, former, [entry(2)]).steps == {}
    latter = record_of("phoenix", storage, create_time_s=2.0)
    assert write(store, former, [entry(3)]).steps == {}
    write(store, latter, [entry(4)])
    assert steps_of(store, "phoenix") == [4]


def test_a_run_that_goes_while_it_is_written_leaves_nothing(place: Place, storage: Storage) -> None:
    class Deleted(LedgerStore):
        """Its run is deleted, and created anew, between the look at it and the writing."""

        def _require_life(self, record: RunRecord) -> None:
            super()._require_life(record)
            if record.create_time_s == 1.0:
                RunStore(storage).delete("hasty")
                record_of("hasty", storage, create_time_s=2.0)

    former = record_of("hasty", storage, create_time_s=1.0)
    assert write(Deleted(storage, LedgerConfig()), former, [entry(1)]).steps == {}
    assert LedgerStore(place.open(), LedgerConfig()).segments("hasty") == []
    assert not [name for name in place.names("runs/hasty") if name.endswith(".parquet")]


def test_the_bound_on_all_ledgers_drops_the_oldest_of_any_run(storage: Storage) -> None:
    store = LedgerStore(storage, LedgerConfig(max_bytes=60_000, max_bytes_per_run=60_000))
    records = {name: record_of(name, storage) for name in ("old", "new")}
    for step in range(40):
        name = "old" if step < 20 else "new"
        write(store, records[name], [entry(step, rows=300)])
        assert sum(segment.total_bytes for run in records for segment in store.segments(run)) <= 60_000
    kept = [*steps_of(store, "old"), *steps_of(store, "new")]
    assert kept == list(range(40 - len(kept), 40))
    assert 4 <= len(kept) < 20


def test_names_that_are_no_segments_are_not_looked_at(place: Place, storage: Storage) -> None:
    record, store = record_of("odd", storage), LedgerStore(storage, LedgerConfig())
    write(store, record, [entry(1)])
    folder = place.versions("odd", "ledger")
    for name in ("notes.txt", "1-2-3.parquet", ".hidden"):
        place.write(f"{folder}/{name}", b"x")
    write(store, record, [entry(2)])
    assert steps_of(store, "odd") == [1, 2]


@settings(max_examples=25, deadline=None)
@given(
    max_steps=st.integers(1, 40),
    max_kib=st.integers(8, 64),
    rounds=st.lists(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 1)), max_size=12), max_size=8),
)
def test_no_sequence_of_answers_exceeds_a_bound_and_what_is_kept_is_the_newest(
    max_steps: int, max_kib: int, rounds: list[list[tuple[int, int]]]
) -> None:
    config = LedgerConfig(max_bytes=max_kib * 1500, max_bytes_per_run=max_kib * 1024, max_steps_per_run=max_steps)
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(WeightsConfig(path=Path(folder)))
        store, step = LedgerStore(storage, config), 0
        records = [record_of(name, storage) for name in ("a", "b")]
        offered: dict[str, list[int]] = {"a": [], "b": []}
        expired, too_large, refused = Counter[str](), Counter[str](), Counter[str]()
        for answers in rounds:
            batches: dict[str, list[Entry]] = {}
            for rows, run in answers:
                step += 1
                made = entry(step, rows)
                batches.setdefault("ab"[run], []).append(made)
                if len(to_parquet(to_table(records[run], [made]))) <= config.max_bytes_per_run:
                    offered["ab"[run]].append(step)
                else:
                    too_large["ab"[run]] += 1
            written = store.write([Batch(records["ab".index(name)], entries) for name, entries in batches.items()])
            assert written.error is None
            expired += written.expired
            refused += written.too_large
            assert refused == too_large
            segments = {name: store.segments(name) for name in offered}
            assert sum(one.total_bytes for of in segments.values() for one in of) <= config.max_bytes
            assert written.total_bytes == sum(one.total_bytes for of in segments.values() for one in of)
            for name, of in segments.items():
                assert sum(one.total_bytes for one in of) <= config.max_bytes_per_run
                assert sum(one.steps for one in of) <= max_steps
                kept = steps_of(store, name)
                assert kept == offered[name][len(offered[name]) - len(kept) :]
                assert len(kept) + expired[name] == len(offered[name])


def test_an_entry_counts_what_it_holds_in_memory() -> None:
    ids = pa.array(["x" * 100] * 50)
    small, large = entry(1, rows=50), replace(entry(1, rows=50), example_id=ids)
    assert small.total_bytes >= 50 * (8 + 4)
    assert large.total_bytes >= small.total_bytes + 50 * 92
