"""A bank in the store: each operation once, whoever is asked, killed or idle; in a directory and in an object store."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preceptor import MemoryBank
from preceptor.errors import (
    BankShortError,
    DiskFullError,
    InternalError,
    RunNotFoundError,
    StepExistsError,
    StepForgottenError,
)
from preceptor_service.config import MemoryBankConfig, WeightsConfig
from preceptor_service.memory_bank.operations import (
    DamagedError,
    operation_from_bytes,
    operation_to_bytes,
    pack_from_bytes,
    pack_to_bytes,
    snapshot_from_bytes,
    snapshot_to_bytes,
)
from preceptor_service.run_store import RunStore
from preceptor_service.storage import Storage, open_storage
from preceptor_service.storage.directory import DirectoryStorage
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
from tests.memory_bank.gateway import DIED
from tests.stores import Place

GRACE_S = 120.0


@pytest.fixture
def storage(place: Place) -> Storage:
    return place.open()


def kept(place: Place, kind: str) -> list[int]:
    """Numbers of the operations or snapshots that lie in the store."""
    found = place.names(place.versions("run", "bank"))
    return sorted(int(name.partition("-")[0]) for name in found if name.endswith(f".{kind}"))


@pytest.mark.parametrize("snapshot_every", [3, 1000], ids=["snapshots", "none"])
def test_another_gateway_and_one_started_anew_go_on_where_the_first_stood(place: Place, snapshot_every: int) -> None:
    record = record_of(place.open())
    first = opened(place.open(), record, snapshot_every=snapshot_every)
    for step in range(4):
        remember(first, record, asked(step, list(range(step * 8, step * 8 + 8)), np.linspace(0, 2, 8).tolist()))
        draw_from(first, record, 3, step)
        if first.is_snapshot_due:
            first.write_snapshot()
    second = opened(place.open(), record)
    again = draw_from(second, record, 3, 2)
    assert not again.is_new
    assert names(again.operation) == names(draw_from(first, record, 3, 2).operation)
    assert same(first.bank, second.bank)
    goes_on = draw_from(second, record, 5, 4)
    assert goes_on.is_new
    assert names(draw_from(first, record, 5, 4).operation) == names(goes_on.operation)
    assert kept(place, "snapshot") == ([4] if snapshot_every == 3 else [])


def test_a_repeat_gets_the_first_answer_whole_and_changes_nothing(storage: Storage) -> None:
    record = record_of(storage, spec(selector="proportional"))
    bank = opened(storage, record)
    wanted = asked(0, [4, 2, 9], [1.0, float("nan"), 0.5], learner_version=3, learner_step=20)
    first = remember(bank, record, wanted).operation
    sampled = draw_from(bank, record, 2, 1).operation
    for gateway in (bank, opened(storage, record)):
        again = remember(gateway, record, wanted)
        assert not again.is_new
        assert (again.operation.evicted, again.operation.examples) == (first.evicted, 2)
        assert again.operation.scores.tobytes() == first.scores.tobytes()
        assert (again.operation.learner_version, again.operation.learner_step) == (3, 20)
        resampled = draw_from(gateway, record, 2, 1)
        assert not resampled.is_new
        assert resampled.operation.ids.tolist() == sampled.ids.tolist()
        assert resampled.operation.weights.tobytes() == sampled.weights.tobytes()
        assert gateway.bank.number == 2


def test_a_name_is_not_used_for_something_else(storage: Storage) -> None:
    record = record_of(storage)
    bank = opened(storage, record)
    remember(bank, record, asked(0, [1, 2], [1.0, 2.0]))
    draw_from(bank, record, 1, 0)
    for gateway in (bank, opened(storage, record)):
        with pytest.raises(StepExistsError, match="step 0 of rank 0 was used to put other candidates in"):
            remember(gateway, record, asked(0, [1, 2], [1.0, 3.0]))
        with pytest.raises(StepExistsError, match="step 0 of rank 0 was used to sample 1 examples"):
            draw_from(gateway, record, 2, 0)
        assert gateway.bank.number == 2
    remember(bank, record, asked(0, [5], [1.0], rank=1))


def test_what_another_gateway_put_in_is_there_for_a_sample_at_once(place: Place) -> None:
    record = record_of(place.open())
    here, there = (opened(place.open(), record) for _ in range(2))
    with pytest.raises(BankShortError):
        draw_from(there, record, 2, 0)
    remember(here, record, asked(0, [1, 2], [1.0, 1.0]))
    assert sorted(names(draw_from(there, record, 2, 0).operation)) == [1, 2]
    with pytest.raises(BankShortError, match="holds 0 examples"):
        draw_from(here, record, 1, 1)


def test_racing_gateways_do_one_thing_after_the_other_and_sample_nothing_twice(place: Place) -> None:
    record = record_of(place.open())
    gateways = [opened(place.open(), record) for _ in range(3)]
    steps = 8

    def act(rank: int) -> list[int]:
        bank, drawn = gateways[rank], list[int]()
        for step in range(steps):
            first = (rank * steps + step) * 4
            assert remember(bank, record, asked(step, list(range(first, first + 4)), [1.0] * 4, rank)).is_new
            drawn += draw_or_none(bank, record, 3, step, rank) or []
        return drawn

    with ThreadPoolExecutor(3) as threads:
        drawn = [name for found in threads.map(act, range(3)) for name in found]
    assert max(Counter(drawn).values()) == 1
    late = opened(place.open(), record)
    late.find(asked(0, [], []).key, asked(0, [0, 1, 2, 3], [1.0] * 4).identity, type(asked(0, [], [])))
    assert late.bank.number == 3 * steps * 2
    assert set(contents(late.bank)) == set(range(3 * steps * 4)) - set(drawn)
    assert len(drawn) == 3 * steps * 3


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_gateway_killed_around_the_commit_did_all_of_it_or_nothing(tmp_path: Path, when: str) -> None:
    place = open_storage(WeightsConfig(path=tmp_path / "killed"))
    record = record_of(place)
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    command = [sys.executable, "-m", "tests.memory_bank.gateway", str(tmp_path / "killed"), when]
    died = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, timeout=60, check=False)
    assert died.returncode == DIED
    bank = opened(place, record)
    answer = draw_from(bank, record, 3, 7)
    assert answer.is_new == (when == "before")
    assert (bank.bank.number, len(bank.bank.rows)) == (2, 5)
    untouched = record_of(open_storage(WeightsConfig(path=tmp_path / "untouched")))
    other = opened(open_storage(WeightsConfig(path=tmp_path / "untouched")), untouched)
    remember(other, untouched, asked(0, list(range(8)), [1.0] * 8))
    assert names(draw_from(other, untouched, 3, 7).operation) == names(answer.operation)
    assert same(other.bank, bank.bank)


def test_a_full_disk_changes_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(WeightsConfig(path=tmp_path))
    record = record_of(storage)
    bank = opened(storage, record)
    remember(bank, record, asked(0, [1, 2], [1.0] * 2))

    def full(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        with pytest.raises(DiskFullError, match="the store cannot write: No space left on device"):
            draw_from(bank, record, 2, 0)
        bank.write_snapshot()  # logs it
    assert bank.bank.number == 1
    assert list((tmp_path / "staging").iterdir()) == []
    assert sorted(names(draw_from(bank, record, 2, 0).operation)) == [1, 2]


def test_what_was_answered_long_ago_is_forgotten_and_not_done_again(storage: Storage) -> None:
    record = record_of(storage, spec(settings=MemoryBank(100, max_times_sampled=None)))
    config = MemoryBankConfig(keep_operations=4)
    bank = opened(storage, record, config)
    remember(bank, record, asked(0, [1, 2, 3], [1.0] * 3))
    for step in range(10, 16):
        draw_from(bank, record, 1, step)
    assert len(bank.bank.records) == 4
    for gateway in (bank, opened(storage, record, config)):
        assert not draw_from(gateway, record, 1, 12).is_new
        with pytest.raises(StepForgottenError, match=r"step 11 of rank 0 may have been sampled .* up to step 11"):
            draw_from(gateway, record, 1, 11)
        with pytest.raises(StepForgottenError, match="step 5 of rank 0 may have been sampled already"):
            draw_from(gateway, record, 1, 5)
        with pytest.raises(StepForgottenError, match="step 0 of rank 0 may have been put in already"):
            remember(gateway, record, asked(0, [1, 2, 3], [1.0] * 3))
    assert draw_from(bank, record, 1, 5, rank=1).is_new


def test_answers_are_kept_up_to_a_bound_in_bytes_and_the_last_one_always(storage: Storage) -> None:
    record = record_of(storage)
    bank = opened(storage, record, MemoryBankConfig(keep_bytes=6000))
    for step in range(12):
        remember(bank, record, asked(step, list(range(step * 8, step * 8 + 8)), [1.0] * 8))
        records = bank.bank.records.values()
        assert sum(one.total_bytes for one in records) <= 6000
    assert 2 < len(bank.bank.records) < 12
    tiny = opened(storage, record, MemoryBankConfig(keep_bytes=1))
    remember(tiny, record, asked(12, [1], [1.0]))
    assert list(tiny.bank.records) == [asked(12, [1], [1.0]).key]


def busy(bank: Any, record: Any, steps: range) -> None:
    for step in steps:
        remember(bank, record, asked(step, [step], [1.0]))
        if bank.is_snapshot_due:
            bank.write_snapshot()


def test_what_a_snapshot_has_is_packed_and_removed_and_repeats_are_answered_from_the_packs(place: Place) -> None:
    record, config, now = record_of(place.open()), MemoryBankConfig(keep_operations=18), [0.0]
    bank = opened(place.open(), record, config, snapshot_every=4, clock=lambda: now[0])
    for number in range(8):
        busy(bank, record, range(number * 4, number * 4 + 4))
        now[0] += GRACE_S / 3
        place.age(GRACE_S / 3 + 1)
    assert kept(place, "snapshot") == [16, 20, 24, 28, 32]  # 20 is the newest that is older than grace
    assert kept(place, "operation") == list(range(17, 33))
    assert kept(place, "pack") == [16]
    busy(bank, record, range(32, 36))
    assert kept(place, "pack") == [20]
    late = opened(place.open(), record, config)
    for gateway in (bank, late):
        for step in range(18, 36):
            answer = remember(gateway, record, asked(step, [step], [1.0]))
            assert (answer.is_new, answer.operation.examples) == (False, step + 1)
        with pytest.raises(StepForgottenError, match="step 17 of rank 0 may have been put in already"):
            remember(gateway, record, asked(17, [17], [1.0]))
    assert same(late.bank, bank.bank)
    more = opened(place.open(), record, MemoryBankConfig(keep_operations=1000))
    remember(more, record, asked(36, [36], [1.0]))
    place.write(f"{place.versions('run', 'bank')}/{pack_of(place)}", b"x")
    with pytest.raises(InternalError, match=r"has a damaged pack 20 \(its checksum is wrong\)"):
        remember(late, record, asked(18, [18], [1.0]))


def pack_of(place: Place) -> str:
    (pack,) = [name for name in place.names(place.versions("run", "bank")) if name.endswith(".pack")]
    return pack


def test_an_idle_gateway_whose_next_operation_is_gone_goes_on_from_what_is_there(place: Place) -> None:
    record, config, now = record_of(place.open()), MemoryBankConfig(keep_operations=2), [0.0]
    idle = opened(place.open(), record, config, clock=lambda: now[0])
    other = opened(place.open(), record, config, snapshot_every=4, clock=lambda: now[0])
    remember(idle, record, asked(0, [0], [1.0]))
    for number in range(4):
        busy(other, record, range(number * 4 + 1, number * 4 + 5))
        now[0] += GRACE_S
        place.age(GRACE_S + 1)
    assert min(kept(place, "operation")) > 2
    assert remember(idle, record, asked(17, [17], [1.0])).is_new
    assert sorted(contents(idle.bank)) == list(range(18))
    remember(other, record, asked(18, [18], [1.0]))
    assert same(opened_and_read(place, record, config), other.bank)


def opened_and_read(place: Place, record: Any, config: MemoryBankConfig) -> Any:
    bank = opened(place.open(), record, config)
    with pytest.raises(BankShortError):
        draw_from(bank, record, 1000, 0)
    return bank.bank


class Slow(DirectoryStorage):
    """Something happens while it creates a file."""

    meanwhile: Callable[[], None] | None = None

    def create(self, name: str, content: bytes) -> bool:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return super().create(name, content)


def test_an_operation_created_so_late_that_its_name_was_free_again_is_taken_back(tmp_path: Path) -> None:
    storage, now = Slow(tmp_path), [0.0]
    record, config = record_of(storage), MemoryBankConfig(keep_operations=2)
    slow = opened(storage, record, config, clock=lambda: now[0])
    other = opened(DirectoryStorage(tmp_path), record, config, snapshot_every=4, clock=lambda: now[0])
    remember(slow, record, asked(0, [0], [1.0]))

    def others_go_on() -> None:
        for number in range(4):
            busy(other, record, range(number * 4 + 1, number * 4 + 5))
            now[0] += GRACE_S
            for path in (tmp_path / "runs").rglob("*.snapshot"):
                os.utime(path, (path.stat().st_mtime - GRACE_S - 1,) * 2)

    storage.meanwhile = others_go_on
    assert remember(slow, record, asked(20, [20], [1.0])).is_new
    assert slow.bank.number == 18
    assert sorted(contents(slow.bank)) == [*range(17), 20]
    assert not list((tmp_path / "runs").rglob("000000000002-*.operation"))
    other.find(asked(20, [], []).key, asked(20, [20], [1.0]).identity, type(asked(0, [], [])))
    remember(other, record, asked(21, [21], [1.0]))
    assert sorted(contents(other.bank)) == [*range(17), 20, 21]


def test_a_deleted_run_takes_its_bank_along_and_another_of_its_name_begins_an_empty_one(place: Place) -> None:
    storage = place.open()
    former = record_of(storage, create_time_s=1.0)
    bank = opened(storage, former)
    remember(bank, former, asked(0, [1], [1.0]))
    RunStore(storage).delete("run")
    assert place.names("runs/run") == []
    with pytest.raises(RunNotFoundError, match="run 'run' was deleted"):
        draw_from(bank, former, 1, 0)
    latter = record_of(storage, create_time_s=2.0)
    with pytest.raises(RunNotFoundError):
        draw_from(bank, former, 1, 0)
    with pytest.raises(RunNotFoundError):
        draw_from(opened(storage, former), former, 1, 0)
    anew = opened(storage, latter)
    with pytest.raises(BankShortError, match="holds 0 examples"):
        draw_from(anew, latter, 1, 0)
    assert remember(anew, latter, asked(0, [2], [1.0])).is_new


@pytest.mark.parametrize("rounds", [1, 6])
def test_any_one_snapshot_may_be_damaged(place: Place, rounds: int) -> None:
    record, config, now = record_of(place.open()), MemoryBankConfig(keep_operations=3), [0.0]
    bank = opened(place.open(), record, config, snapshot_every=4, clock=lambda: now[0])
    for number in range(rounds):
        busy(bank, record, range(number * 4, number * 4 + 4))
        now[0] += GRACE_S
        place.age(GRACE_S + 1)
    folder = place.versions("run", "bank")
    snapshots = [name for name in place.names(folder) if name.endswith(".snapshot")]
    assert len(snapshots) == min(rounds, 3)
    place.write(f"{folder}/{snapshots[-1]}", b"nothing like it")
    late = opened(place.open(), record, config)
    assert remember(late, record, asked(99, [99], [1.0])).is_new
    assert sorted(contents(late.bank)) == [*range(rounds * 4), 99]


def test_a_damaged_operation_is_named_and_whoever_knew_what_it_did_goes_on(place: Place) -> None:
    record = record_of(place.open())
    bank = opened(place.open(), record)
    busy(bank, record, range(4))
    folder = place.versions("run", "bank")
    (second,) = [name for name in place.names(folder) if name.startswith("000000000002-")]
    place.write(f"{folder}/{second}", b"")
    for attempt in (opened(place.open(), record), bank):
        with pytest.raises(InternalError, match=r"the bank of run 'run' has a damaged operation 2 \(its checksum is"):
            remember(attempt, record, asked(1, [1], [1.0]))
    assert remember(bank, record, asked(9, [9], [1.0])).is_new


def test_a_bank_that_lacks_an_operation_is_not_guessed_at(tmp_path: Path) -> None:
    storage = open_storage(WeightsConfig(path=tmp_path))
    record = record_of(storage)
    bank = opened(storage, record)
    busy(bank, record, range(4))
    next((tmp_path / "runs").rglob("000000000002-*")).unlink()
    with pytest.raises(InternalError, match="the bank of run 'run' lacks operation 2 in the store"):
        remember(opened(storage, record), record, asked(9, [9], [1.0]))


def test_names_that_are_none_of_a_bank_are_not_looked_at(place: Place) -> None:
    record = record_of(place.open())
    remember(opened(place.open(), record), record, asked(0, [1], [1.0]))
    folder = place.versions("run", "bank")
    for name in ("notes.txt", "000000000009-00000000.operation", "7.snapshot", ".hidden"):
        place.write(f"{folder}/{name}", b"x")
    assert names(draw_from(opened(place.open(), record), record, 1, 0).operation) == [1]


def test_a_flipped_byte_never_passes(storage: Storage) -> None:
    record = record_of(storage, spec(selector="proportional", settings=MemoryBank(10, max_times_sampled=None)))
    bank = opened(storage, record)
    put = remember(bank, record, asked(0, ["a", "b"], [1.0, 2.0])).operation
    sampled = draw_from(bank, record, 2, 0).operation
    whole = [operation_to_bytes(put), operation_to_bytes(sampled), snapshot_to_bytes(bank.bank)]
    whole.append(pack_to_bytes({7: whole[0], 9: whole[1]}))
    read: list[Callable[[bytes], Any]] = [operation_from_bytes, operation_from_bytes, snapshot_from_bytes]
    read.append(pack_from_bytes)
    assert pack_from_bytes(whole[3]) == {7: whole[0], 9: whole[1]}
    rng = np.random.default_rng(0)
    for content, parse in zip(whole, read, strict=True):
        parse(content)
        for place in [*rng.integers(0, len(content), 60), 0, len(content) - 1]:
            flipped = bytearray(content)
            flipped[place] ^= 1 << int(rng.integers(0, 8))
            with pytest.raises(DamagedError):
                parse(bytes(flipped))
        with pytest.raises(DamagedError):
            parse(content[:-1])


def test_a_run_without_a_bank_has_none_to_open(storage: Storage) -> None:
    plain = record_of(storage, spec("plain", None))
    without = replace(plain, spec=replace(plain.spec, memory_bank=None))
    with pytest.raises(ValueError, match="run 'plain' has no memory bank"):
        opened(storage, without)
