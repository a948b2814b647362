"""What a push leaves behind: the next version, or nothing at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from preceptor.errors import (
    DiskFullError,
    InternalError,
    InvalidWeightsError,
    PushConflictError,
    ReferenceFrozenError,
    StaleWeightsError,
    TooLargeError,
    WeightsNotFoundError,
)
from preceptor_service import weight_store
from preceptor_service.run_store import RunStore
from preceptor_service.storage import Storage
from preceptor_service.weight_store import WeightStore
from preceptor_service.weight_versions import WeightsVersion, create_manifest
from tests.stores import Place
from tests.weight_store.pushing import create_run, push, store_with_runs


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture
def store(place: Place) -> WeightStore:
    return store_with_runs(place.open(), keep_versions=3)


def staging_files(place: Place) -> list[str]:
    """What is on its way, here and there."""
    return [*(path.name for path in place.open().staging.iterdir()), *place.names("staging")]


class TestCommit:
    def test_versions_count_up_and_outlive_the_process(self, store: WeightStore, place: Place) -> None:
        first, second = push(store, b"one", step=5), push(store, b"two", step=7)

        again = WeightStore(place.open(), keep_versions=3, max_bytes=1000)
        assert again.versions("run", "learner") == (first, second)
        assert (second.version, second.step, second.digest, second.total_bytes) == (2, 7, digest(b"two"), 3)
        assert again.head("run", "learner") == second
        assert again.version("run", "learner", 1) == first
        assert again.verify(first.digest).read_bytes() == b"one"
        assert staging_files(place) == []

    def test_nothing_before_the_first_push(self, store: WeightStore) -> None:
        assert store.head("run", "learner") is None
        assert store.versions("run", "reference") == ()
        with pytest.raises(WeightsNotFoundError, match="no learner version 1"):
            store.version("run", "learner", 1)

    def test_a_repeated_push_answers_the_version_committed_first(self, store: WeightStore) -> None:
        first = push(store, b"one", step=5, base=0)
        push(store, b"two", step=6)

        assert push(store, b"one", step=5, base=0) == first
        assert len(store.versions("run", "learner")) == 2

    def test_the_same_weights_at_a_later_step_are_a_new_version(self, store: WeightStore) -> None:
        push(store, b"one", step=5)

        assert push(store, b"one", step=6).version == 2

    def test_a_push_that_began_before_another_was_committed_is_a_conflict(self, store: WeightStore) -> None:
        push(store, b"one", step=1)

        with pytest.raises(PushConflictError, match="is at learner version 1, and was at 0"):
            push(store, b"two", step=2, base=0)

    def test_losing_by_a_hair_is_a_conflict(self, store: WeightStore, monkeypatch: pytest.MonkeyPatch) -> None:
        overtaken_by(store, b"winner", 2, monkeypatch)

        with pytest.raises(PushConflictError, match="got learner version 1 from another push"):
            push(store, b"two", step=2)
        head = store.head("run", "learner")
        assert head is not None
        assert head.digest == digest(b"winner")

    def test_losing_by_a_hair_to_the_same_push_is_none(
        self, store: WeightStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        overtaken_by(store, b"two", 2, monkeypatch)

        assert push(store, b"two", step=2).version == 1

    def test_a_slow_push_still_conflicts_when_the_version_it_wanted_has_expired(self, place: Place) -> None:
        store = store_with_runs(place.open(), keep_versions=2)
        for step in range(5):
            push(store, b"%d" % step, step=step)
        store.collect()

        with pytest.raises(PushConflictError):
            push(store, b"slow", step=9, base=0)

    def test_the_directory_of_a_first_push_is_durable_before_it_is_answered(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = store_with_runs(tmp_path, keep_versions=2)
        synced = directories_synced(monkeypatch)

        push(store, b"one")

        assert {tmp_path / "blobs", tmp_path / "runs/run", tmp_path / "runs/run/learner"} <= synced(tmp_path)

    def test_the_directories_of_a_new_store_are_durable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        synced = directories_synced(monkeypatch)

        WeightStore(tmp_path / "a" / "store", keep_versions=2, max_bytes=1000)

        assert {tmp_path, tmp_path / "a", tmp_path / "a/store"} <= synced(tmp_path)

    def test_weights_that_were_not_sealed_cannot_be_committed(self, store: WeightStore) -> None:
        with store.stage(3) as staged, pytest.raises(ValueError, match="not sealed"):
            store.commit("run", "learner", staged, 0, 0)

    @pytest.mark.parametrize("run_id", ["../run", "", "A", "a/b"])
    def test_a_run_id_is_never_a_path(self, store: WeightStore, run_id: str) -> None:
        with pytest.raises(ValueError, match="run_id"):
            push(store, b"one", run_id=run_id, base=0)


class TestRewind:
    def test_an_older_step_is_refused(self, store: WeightStore) -> None:
        push(store, b"one", step=5)

        with pytest.raises(StaleWeightsError, match="step is 4, the committed learner's is 5"):
            push(store, b"two", step=4)

    def test_an_older_step_is_taken_with_rewind(self, store: WeightStore) -> None:
        push(store, b"one", step=5)

        assert push(store, b"two", step=4, rewind=True).version == 2

    def test_going_back_to_committed_weights_makes_them_the_newest(self, store: WeightStore) -> None:
        push(store, b"one", step=1)
        push(store, b"two", step=2)

        back = push(store, b"one", step=1, rewind=True)

        assert back.version == 3
        assert store.head("run", "learner") == back
        assert push(store, b"one", step=1, rewind=True, base=2) == back

    def test_weights_that_training_comes_to_again_after_it_went_back_are_used_again(self, store: WeightStore) -> None:
        push(store, b"five", step=5)
        push(store, b"two", step=2, rewind=True)

        again = push(store, b"five", step=5)

        assert again.version == 3
        assert push(store, b"five", step=5) == again


class TestReference:
    def test_it_is_frozen(self, store: WeightStore) -> None:
        first = push(store, b"one", role="reference")

        assert push(store, b"one", role="reference") == first
        with pytest.raises(ReferenceFrozenError, match=digest(b"two")):
            push(store, b"two", role="reference")
        assert store.head("run", "reference") == first

    def test_another_run_adopts_it_by_digest(self, store: WeightStore) -> None:
        push(store, b"one", role="reference")

        adopted = store.adopt("other", "reference", digest(b"one"))

        assert (adopted.digest, adopted.total_bytes) == (digest(b"one"), 3)
        assert store.adopt("other", "reference", digest(b"one")) == adopted
        store.delete_run("run")
        store.collect()
        assert store.verify(digest(b"one")).read_bytes() == b"one"

    @pytest.mark.parametrize("wanted", [digest(b"?"), "sha256:../../etc/passwd", ""])
    def test_an_unknown_digest_cannot_be_adopted(self, store: WeightStore, wanted: str) -> None:
        with pytest.raises(WeightsNotFoundError):
            store.adopt("run", "reference", wanted)
        assert store.head("run", "reference") is None


class TestStaging:
    def test_more_bytes_than_announced(self, store: WeightStore, place: Place) -> None:
        with store.stage(3) as staged, pytest.raises(InvalidWeightsError, match="at least 4 bytes, announced were 3"):
            staged.write(b"four")
        assert staging_files(place) == []

    def test_fewer_bytes_than_announced(self, store: WeightStore) -> None:
        with store.stage(3) as staged:
            staged.write(b"12")
            with pytest.raises(InvalidWeightsError, match="2 bytes came, announced were 3"):
                staged.seal(hashlib.sha256(b"12").digest())

    def test_another_checksum(self, store: WeightStore) -> None:
        with store.stage(3) as staged:
            staged.write(b"123")
            with pytest.raises(InvalidWeightsError, match=hashlib.sha256(b"123").hexdigest()):
                staged.seal(bytes(32))

    def test_more_than_the_limit_before_a_byte_is_written(self, store: WeightStore, place: Place) -> None:
        with pytest.raises(TooLargeError, match="1001 bytes, the limit is 1000"):
            store.stage(1001)
        assert staging_files(place) == []

    def test_no_bytes(self, store: WeightStore) -> None:
        with pytest.raises(InvalidWeightsError, match="total_bytes is 0"):
            store.stage(0)

    def test_a_full_disk(self, store: WeightStore, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("preceptor_service.weight_staging.os.fsync", full)
        with pytest.raises(DiskFullError, match="No space left"):
            push(store, b"one")
        assert store.head("run", "learner") is None
        assert staging_files(place) == []


class TestDamage:
    def test_a_damaged_manifest_is_named_and_older_versions_stay_readable(
        self, store: WeightStore, place: Place
    ) -> None:
        first = push(store, b"one", step=1)
        push(store, b"two", step=2)
        place.write(f"{place.versions('run')}/00000002.json", b'{"version": 2')

        with pytest.raises(InternalError, match="learner version 2 of run 'run' is damaged"):
            store.head("run", "learner")
        assert store.versions("run", "learner") == (first,)
        assert store.version("run", "learner", 1) == first
        assert store.newest_intact("run", "learner") == first

    def test_a_push_goes_on_after_a_damaged_manifest(self, store: WeightStore, place: Place) -> None:
        push(store, b"one", step=1)
        place.write(f"{place.versions('run')}/00000001.json", b"")
        assert store.newest_intact("run", "learner") is None

        after = push(store, b"two", step=2, base=store.newest_number("run", "learner"))

        assert after.version == 2
        assert store.newest_intact("run", "learner") == store.head("run", "learner") == after

    def test_a_damaged_reference_is_named_and_stays_frozen(self, store: WeightStore, place: Place) -> None:
        push(store, b"one", role="reference")
        place.write(f"{place.versions('run', 'reference')}/00000001.json", b"")

        with pytest.raises(InternalError, match=r"reference version 1 .* is damaged .*; create another run"):
            store.head("run", "reference")
        with pytest.raises(ReferenceFrozenError, match=r"\(damaged\)"):
            push(store, b"two", role="reference", base=0)

    def test_no_blob_is_removed_while_a_manifest_is_damaged(self, store: WeightStore, place: Place) -> None:
        one = push(store, b"one", step=1)
        place.write(f"{place.versions('run')}/00000001.json", b"")

        place.age(100)
        store.collect()

        assert place.names("blobs") == [one.digest.removeprefix("sha256:")]

    def test_a_damaged_blob_is_named_and_healed_by_pushing_again(self, tmp_path: Path) -> None:
        store = store_with_runs(tmp_path, keep_versions=3)
        one = push(store, b"one", step=1)
        store.blob_path(one.digest).write_bytes(b"0ne")

        with pytest.raises(InternalError, match="damaged"):
            store.verify(one.digest)
        assert push(store, b"one", step=1) == one
        assert store.verify(one.digest).read_bytes() == b"one"


class TestDeleteRun:
    def test_its_versions_are_gone_and_others_stay(self, store: WeightStore, place: Place) -> None:
        push(store, b"one")
        kept = push(store, b"two", run_id="other")

        store.delete_run("run")
        store.delete_run("run")
        place.age(100)
        store.collect()

        assert store.head("run", "learner") is None
        with pytest.raises(WeightsNotFoundError):
            store.require(digest(b"one"))
        assert store.verify(kept.digest).read_bytes() == b"two"

    def test_a_commit_under_way_does_not_bring_it_back(
        self, store: WeightStore, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def deleted_first(storage: Storage, folder: str, version: WeightsVersion) -> bool:
            store.delete_run("run")
            RunStore(place.open()).delete("run")
            return create_manifest(storage, folder, version)

        monkeypatch.setattr(weight_store, "create_manifest", deleted_first)
        with pytest.raises(PushConflictError, match="deleted"):
            push(store, b"one")
        assert store.head("run", "learner") is None

    def test_a_first_push_under_way_does_not_bring_it_back(self, store: WeightStore, place: Place) -> None:
        RunStore(place.open()).delete("run")

        with pytest.raises(PushConflictError, match="run 'run' was deleted"):
            push(store, b"one")
        assert place.names("runs/run") == []
        push(store, b"one", run_id="other")
        with pytest.raises(PushConflictError, match="run 'run' was deleted"):
            store.adopt("run", "reference", digest(b"one"))
        create_run(place.open())
        assert store.head("run", "learner") is None

    def test_a_deletion_between_two_looks_at_a_directory_is_a_deletion(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = store_with_runs(tmp_path, keep_versions=2)
        with store.stage(3) as staged:
            staged.write(b"one")
            staged.seal(hashlib.sha256(b"one").digest())

            def deleted_meanwhile(path: Path, mode: int = 0o777) -> None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)

            monkeypatch.setattr("os.mkdir", deleted_meanwhile)
            with pytest.raises(PushConflictError, match="run 'run' was deleted"):
                store.commit("run", "learner", staged, 0, 0)

    def test_a_first_push_under_way_does_not_reach_the_next_life(self, store: WeightStore, place: Place) -> None:
        runs = RunStore(place.open())
        former = runs.read("run")
        runs.delete("run")
        latter = create_run(place.open())

        with pytest.raises(PushConflictError, match="run 'run' was deleted"):
            push(store, b"one", is_current=lambda: runs.holds(former))
        assert store.head("run", "learner") is None
        assert push(store, b"one", is_current=lambda: runs.holds(latter)).version == 1

    def test_a_push_between_the_two_halves_of_a_deletion_is_deleted_too(self, store: WeightStore, place: Place) -> None:
        store.delete_run("run")
        push(store, b"one")
        RunStore(place.open()).delete("run")

        create_run(place.open())
        assert store.head("run", "learner") is None


def directories_synced(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], set[Path]]:
    """From now on, notes what is made durable; call it for the directories at or below a path."""
    inodes: set[int] = set()
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        inodes.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr("preceptor_service.weight_staging.os.fsync", noted)
    return lambda root: {path for path in (root, *root.rglob("*")) if path.is_dir() and path.stat().st_ino in inodes}


def overtaken_by(store: WeightStore, data: bytes, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets another push of `data` commit just before the next manifest is created."""

    def overtaken(storage: Storage, folder: str, version: WeightsVersion) -> bool:
        monkeypatch.undo()
        push(store, data, step=step)
        return create_manifest(storage, folder, version)

    monkeypatch.setattr(weight_store, "create_manifest", overtaken)


class TestTrained:
    def test_of_two_trainings_of_one_version_the_first_is_committed(self, place: Place) -> None:
        store = store_with_runs(place.open(), keep_versions=2)
        first, second = (
            WeightsVersion(1, 0, store.put(content), len(content), time.time()) for content in (b"first", b"second")
        )

        assert store.commit_trained("run", first) is first
        assert store.commit_trained("run", second) == first
        assert store.head("run", "learner") == first

    def test_blobs_that_are_gone_are_not_committed(self, place: Place) -> None:
        store = store_with_runs(place.open(), keep_versions=2)
        version = WeightsVersion(1, 0, store.put(b"weights"), 7, time.time(), f"sha256:{'0' * 64}")

        with pytest.raises(WeightsNotFoundError):
            store.commit_trained("run", version)
        assert store.head("run", "learner") is None

    def test_a_run_that_was_deleted_meanwhile_gets_nothing(self, place: Place) -> None:
        store = store_with_runs(place.open(), keep_versions=2)
        version = WeightsVersion(1, 0, store.put(b"weights"), 7, time.time())

        with pytest.raises(PushConflictError, match="was deleted"):
            store.commit_trained("run", version, is_current=lambda: False)
        with pytest.raises(PushConflictError, match="was deleted"):
            store.commit_trained("never-made", version)

    def test_manifests_of_pushes_are_as_older_gateways_know_them(self, place: Place) -> None:
        store = store_with_runs(place.open(), keep_versions=2)
        push(store, b"pushed")
        content = place.open().read(f"{place.versions('run')}/00000001.json")

        assert json.loads(content).keys() == {"version", "step", "digest", "total_bytes", "commit_time_s"}
