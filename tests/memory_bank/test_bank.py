"""What a bank holds and what it gives equals a dictionary and loops, whatever is put and sampled by which gateway."""

from __future__ import annotations

import tempfile
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preceptor import MemoryBank
from preceptor.errors import BankShortError, InvalidSuperBatchError
from preceptor_service.config import WeightsConfig
from preceptor_service.memory_bank.bank import Key, Put
from preceptor_service.memory_bank.ids import as_ids
from preceptor_service.memory_bank.rows import ROW_BYTES, no_rows, remembered
from preceptor_service.storage import Storage, open_storage
from tests.memory_bank.acting import (
    asked,
    contents,
    draw_from,
    draw_or_none,
    names,
    opened,
    record_of,
    remember,
    same,
    spec,
)
from tests.naive.memory_bank import NaiveBank

SCORES = st.one_of(st.floats(-4, 4, width=32), st.sampled_from([0.0, 1.0, float("nan"), float("inf")]))
PUTS = st.tuples(
    st.just("put"),
    st.dictionaries(st.integers(0, 40), SCORES, min_size=1, max_size=12),
    st.integers(1, 9),
    st.integers(0, 20),
)
SAMPLES = st.tuples(st.just("sample"), st.integers(1, 8), st.integers(0, 30), st.integers(0, 1))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(WeightsConfig(path=tmp_path))


@settings(max_examples=60, deadline=None)
@given(
    operations=st.lists(st.tuples(st.one_of(PUTS, SAMPLES), st.integers(0, 1)), max_size=25),
    capacity=st.integers(12, 30),
    max_times=st.sampled_from([None, 1, 2]),
    max_staleness=st.sampled_from([None, 0, 5]),
    texts=st.booleans(),
    selector=st.sampled_from(["softmax", "top_k", "proportional", "uniform"]),
    schedule=st.sampled_from([{}, {"uniform_share": 0.5}, {"select_from_step": 10, "warm_up_steps": 8}]),
)
def test_any_puts_and_samples_through_two_gateways_are_those_of_a_dictionary_and_loops(
    operations: list[tuple[Any, int]],
    capacity: int,
    max_times: int | None,
    max_staleness: int | None,
    texts: bool,
    selector: str,
    schedule: dict[str, Any],
) -> None:
    run = spec("folded", MemoryBank(capacity, max_times, max_staleness), selector=selector, seed=5, **schedule)
    with tempfile.TemporaryDirectory() as folder:
        places = [open_storage(WeightsConfig(path=Path(folder))) for _ in range(2)]
        record = record_of(places[0], run)
        gateways = [opened(place, record, snapshot_every=4, grace_s=180) for place in places]
        assert run.memory_bank is not None
        naive = NaiveBank(run, run.memory_bank)
        for number, (operation, through) in enumerate(operations):
            bank = gateways[through]
            if operation[0] == "put":
                _, scored, version, step = operation
                ids = [f"é{key}" if texts else key * 10**12 for key in scored]
                # Each is an operation of its own: the steps of puts go up, those of samples name them by rank.
                done = remember(
                    bank, record, asked(number, ids, list(scored.values()), learner_version=version, learner_step=step)
                )
                scores = [float(np.float32(score)) for score in scored.values()]
                assert done.operation.evicted == naive.put(ids, scores, version, step)
                assert done.operation.examples == len(naive.examples)
            else:
                _, count, step, _ = operation
                assert draw_or_none(bank, record, count, step, number) == naive.sample(count, step, number)
            if bank.is_snapshot_due:
                bank.write_snapshot()
        restarted = opened(open_storage(WeightsConfig(path=Path(folder))), record)
        for bank in (*gateways, restarted):
            with pytest.raises(BankShortError):
                draw_from(bank, record, 1000, 0, 0)
            assert {key: astuple(example) for key, example in naive.examples.items()} == contents(bank.bank)
            assert bank.bank.rows.ids.tolist() == sorted(bank.bank.rows.ids.tolist())
        assert same(gateways[0].bank, gateways[1].bank)
        assert same(gateways[0].bank, restarted.bank)


def test_an_id_that_comes_again_gets_the_new_score_and_stamp(storage: Storage) -> None:
    record = record_of(storage)
    bank = opened(storage, record)
    remember(bank, record, asked(0, [1, 2], [0.5, 0.25], learner_version=1, learner_step=3))
    remember(bank, record, asked(1, [2, 3], [4.0, 5.0], learner_version=2, learner_step=9))
    assert contents(bank.bank) == {1: (0.5, 1, 3, 1, 0), 2: (4.0, 2, 9, 2, 0), 3: (5.0, 2, 9, 2, 0)}


def test_the_oldest_scores_leave_first_and_of_one_super_batch_the_lowest(storage: Storage) -> None:
    record = record_of(storage, spec(settings=MemoryBank(4)))
    bank = opened(storage, record)
    remember(bank, record, asked(0, [1, 2, 3, 4], [9.0, 7.0, 8.0, 6.0]))
    assert remember(bank, record, asked(1, [4], [1.0])).operation.evicted == 0  # young again, though the lowest
    assert remember(bank, record, asked(2, [5, 6], [0.0, 0.0])).operation.evicted == 2
    assert sorted(contents(bank.bank)) == [1, 4, 5, 6]


def test_a_score_that_is_not_finite_is_left_out_and_takes_the_old_one_with_it(storage: Storage) -> None:
    record = record_of(storage)
    bank = opened(storage, record)
    remember(bank, record, asked(0, [1, 2, 3], [1.0, 2.0, 3.0]))
    answer = remember(bank, record, asked(1, [2, 3, 4], [float("nan"), 5.0, float("-inf")])).operation
    assert (answer.examples, answer.evicted) == (2, 0)
    assert {key: values[0] for key, values in contents(bank.bank).items()} == {1: 1.0, 3: 5.0}


def test_an_example_is_sampled_as_often_as_the_run_says(storage: Storage) -> None:
    record = record_of(storage, spec(settings=MemoryBank(10, max_times_sampled=2)))
    bank = opened(storage, record)
    remember(bank, record, asked(0, [1, 2, 3, 4], [1.0] * 4))
    drawn = [name for step in range(4) for name in names(draw_from(bank, record, 2, step).operation)]
    assert sorted(drawn) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert draw_or_none(bank, record, 1, 9) is None


def test_without_a_bound_on_that_nothing_leaves(storage: Storage) -> None:
    record = record_of(storage, spec(settings=MemoryBank(10, max_times_sampled=None)))
    bank = opened(storage, record)
    remember(bank, record, asked(0, [1, 2, 3], [1.0] * 3))
    for step in range(20):
        assert draw_from(bank, record, 3, step).operation.examples == 3
    assert {values[4] for values in contents(bank.bank).values()} == {20}


def test_stale_scores_are_kept_and_sampled_once_they_are_fresh_again(storage: Storage) -> None:
    record = record_of(storage, spec(settings=MemoryBank(10, max_staleness_steps=5)))
    bank = opened(storage, record)
    remember(bank, record, asked(0, [1, 2, 3], [1.0] * 3, learner_step=0))
    remember(bank, record, asked(1, [4], [1.0], learner_step=4))
    with pytest.raises(
        BankShortError,
        match=r"holds 4 examples, 1 of them with a score no older than max_staleness_steps 5 at step 9, and 2 were",
    ):
        draw_from(bank, record, 2, 9)
    assert names(draw_from(bank, record, 1, 9).operation) == [4]
    remember(bank, record, asked(2, [1, 2], [1.0] * 2, learner_step=9))
    assert sorted(names(draw_from(bank, record, 2, 10).operation)) == [1, 2]
    assert sorted(contents(bank.bank)) == [3]


def test_scores_without_a_learner_copy_never_get_stale(storage: Storage) -> None:
    record = record_of(storage, spec(settings=MemoryBank(10, max_staleness_steps=0)))
    bank = opened(storage, record)
    remember(bank, record, asked(0, [1], [1.0], learner_version=0, learner_step=0))
    assert names(draw_from(bank, record, 1, 2**62).operation) == [1]


def test_a_bank_asked_for_more_than_it_holds_says_the_numbers_and_keeps_what_it_has(storage: Storage) -> None:
    record = record_of(storage)
    bank = opened(storage, record)
    with pytest.raises(BankShortError, match="the bank of run 'run' holds 0 examples, and 1 were to be sampled"):
        draw_from(bank, record, 1, 0)
    remember(bank, record, asked(0, [1, 2, 3], [1.0] * 3))
    with pytest.raises(BankShortError, match="holds 3 examples, and 4 were to be sampled; remember more candidates"):
        draw_from(bank, record, 4, 0)
    assert (bank.bank.number, len(bank.bank.rows)) == (1, 3)
    assert sorted(names(draw_from(bank, record, 3, 0).operation)) == [1, 2, 3]


def test_ids_of_the_other_kind_are_refused_while_there_are_some_of_the_first(storage: Storage) -> None:
    record = record_of(storage)
    bank = opened(storage, record)
    remember(bank, record, asked(0, [7], [1.0]))
    with pytest.raises(InvalidSuperBatchError, match="ids are whole numbers, and these are texts"):
        remember(bank, record, asked(1, ["seven"], [1.0]))
    draw_from(bank, record, 1, 0)
    remember(bank, record, asked(1, ["seven"], [1.0]))
    with pytest.raises(InvalidSuperBatchError, match="ids are texts, and these are whole numbers"):
        remember(bank, record, asked(2, [7], [1.0]))
    assert names(draw_from(bank, record, 1, 1).operation) == ["seven"]


@pytest.mark.parametrize(
    ("ids", "complaint"),
    [
        ([3, 1, 2, 1], "example_id 1 is in rows 1 and 3; a bank keeps one score of each example"),
        (["a", "b", "a"], "example_id 'a' is in rows 0 and 2"),
        (["a", ""], "row 1 has 0 bytes as UTF-8; a bank keeps texts of 1 to 128"),
        (["é" * 64, "é" * 64 + "a"], "row 1 has 129 bytes as UTF-8"),
        (["a", "b\0"], "row 1 has a NUL character in it"),
    ],
)
def test_ids_that_a_bank_cannot_keep_are_refused_with_their_row(ids: list[Any], complaint: str) -> None:
    with pytest.raises(InvalidSuperBatchError, match=complaint):
        as_ids(pa.array(ids))


def test_ids_come_back_as_they_were_given(storage: Storage) -> None:
    given = ["z", "ä" * 64, "a", "日本", "aa"]
    record = record_of(storage)
    remember(opened(storage, record), record, asked(0, given, [1.0] * 5))
    assert sorted(names(draw_from(opened(storage, record), record, 5, 0).operation)) == sorted(given)


def test_the_largest_and_smallest_whole_numbers_are_ids(storage: Storage) -> None:
    record = record_of(storage)
    remember(opened(storage, record), record, asked(0, [2**63 - 1, -(2**63), 0], [1.0] * 3))
    assert sorted(names(draw_from(opened(storage, record), record, 3, 0).operation)) == [-(2**63), 0, 2**63 - 1]


@pytest.mark.parametrize("kind", ["numbers", "texts"])
def test_no_row_takes_more_than_a_row_may(kind: str) -> None:
    ids = np.arange(1000) if kind == "numbers" else np.array([f"{i:0128d}".encode() for i in range(1000)])
    scores, contents_ = np.ones(1000, np.float32), np.ones(1000, np.uint64)
    rows, _ = remembered(no_rows(), ids, scores, contents_, 1, 1, 1, 1000)
    assert rows.total_bytes <= 1000 * ROW_BYTES
    assert kind == "numbers" or rows.total_bytes == 1000 * ROW_BYTES


@pytest.mark.parametrize("names_", [[1, 2, 3], ["a", "b", "é"]], ids=["numbers", "texts"])
def test_an_id_with_other_content_is_refused_and_the_bank_stays_as_it_was(names_: list[Any], storage: Storage) -> None:
    record = record_of(storage)
    bank = opened(storage, record)
    remember(bank, record, asked(0, names_, [1.0, 2.0, 3.0], contents=[11, 12, 13]))
    before = contents(bank.bank)
    with pytest.raises(InvalidSuperBatchError) as caught:
        remember(bank, record, asked(1, names_[1:], [5.0, float("nan")], contents=[12, 99]))
    assert str(caught.value).startswith(f"example_id {names_[2]!r} in row 1 has other content than the example of that")
    assert contents(bank.bank) == before

    remember(bank, record, asked(1, names_[:2], [5.0, 6.0], contents=[11, 12]))
    assert [values[0] for values in contents(bank.bank).values()] == [5.0, 6.0, 3.0]
    remember(bank, record, asked(2, [names_[2]], [float("nan")], contents=[13]))  # leaves, and its content with it
    remember(bank, record, asked(3, [names_[2]], [4.0], contents=[99]))
    assert bank.bank.rows.contents.tolist() == [11, 12, 99]
    again = opened(storage, record)
    again.find(Key("put", 9, 0), "", Put)
    assert same(again.bank, bank.bank)


def test_what_an_older_gateway_put_in_is_known_from_its_next_time_on(storage: Storage) -> None:
    record = record_of(storage)
    bank = opened(storage, record)
    remember(bank, record, asked(0, [1, 2], [1.0, 2.0], contents=[0, 0]))
    remember(bank, record, asked(1, [1], [1.0], contents=[11]))
    remember(bank, record, asked(2, [1, 2], [1.0, 2.0], contents=[0, 0]))
    assert bank.bank.rows.contents.tolist() == [11, 0]
    with pytest.raises(InvalidSuperBatchError, match="example_id 1 in row 1 has other content"):
        remember(bank, record, asked(3, [2, 1], [1.0, 2.0], contents=[22, 12]))
