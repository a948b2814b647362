"""What `collect` removes, and what it never may."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from preceptor.errors import WeightsNotFoundError
from preceptor_service.weight_store import UPLOAD_GRACE_S, WeightStore, WeightsVersion
from tests.weight_store.pushing import push, store_with_runs


def test_the_newest_versions_and_the_reference_stay(tmp_path: Path) -> None:
    store = store_with_runs(tmp_path, keep_versions=2, grace_s=0)
    reference = push(store, b"reference", role="reference")
    versions = [push(store, b"%d" % step, step=step) for step in range(5)]

    store.collect()

    assert store.versions("run", "learner") == tuple(versions[-2:])
    kept = {store.verify(version.digest) for version in (reference, *versions[-2:])}
    assert set((tmp_path / "blobs").iterdir()) == kept
    assert sorted(path.name for path in (tmp_path / "runs/run/learner").iterdir()) == ["00000004.json", "00000005.json"]
    with pytest.raises(WeightsNotFoundError, match="no learner version 1"):
        store.version("run", "learner", 1)


def test_expired_versions_leave_a_trace_for_the_grace_period(tmp_path: Path) -> None:
    store = store_with_runs(tmp_path, keep_versions=2, grace_s=3600)
    for step in range(3):
        push(store, b"%d" % step, step=step)

    store.collect()

    assert [version.version for version in store.versions("run", "learner")] == [2, 3]
    assert (tmp_path / "runs/run/learner/00000001.json").exists()


def test_a_version_that_was_newest_for_long_stays_whole_for_the_grace_period_after_it_expired(tmp_path: Path) -> None:
    store = store_with_runs(tmp_path, keep_versions=2, grace_s=60)
    pinned = push(store, b"0")
    grow_older(tmp_path, 100)
    for step in (1, 2, 3):
        push(store, b"%d" % step, step=step)

    store.collect()

    assert store.verify(pinned.digest).read_bytes() == b"0"
    grow_older(tmp_path, 100)
    store.collect()
    with pytest.raises(WeightsNotFoundError):
        store.blob_path(pinned.digest)
    assert not (tmp_path / "runs/run/learner/00000001.json").exists()


def grow_older(root: Path, seconds: float) -> None:
    """Lets that time pass for every file in the store."""
    for path in root.rglob("*"):
        if path.is_file():
            time_s = path.stat().st_mtime - seconds
            os.utime(path, (time_s, time_s))


def test_versions_shared_by_two_runs_stay_while_one_names_them(tmp_path: Path) -> None:
    store = store_with_runs(tmp_path, keep_versions=2, grace_s=0)
    shared = push(store, b"shared")
    push(store, b"shared", run_id="other")
    store.delete_run("run")

    store.collect()

    assert store.verify(shared.digest).read_bytes() == b"shared"


def test_uploads_are_removed_once_nobody_writes_to_them(tmp_path: Path) -> None:
    store = store_with_runs(tmp_path, keep_versions=2, grace_s=0)
    alive, abandoned = store.stage(3), store.stage(3)
    long_ago = time.time() - UPLOAD_GRACE_S - 1
    os.utime(abandoned.path, (long_ago, long_ago))

    store.collect()

    assert alive.path.exists()
    assert not abandoned.path.exists()
    alive.close()
    abandoned.close()


def test_a_blob_that_a_collection_took_while_it_was_committed_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_with_runs(tmp_path, keep_versions=2, grace_s=0)
    create = store._create

    def collected_first(manifest: Path, version: WeightsVersion) -> bool:
        store.collect()
        with pytest.raises(WeightsNotFoundError):
            store.blob_path(version.digest)
        return create(manifest, version)

    monkeypatch.setattr(store, "_create", collected_first)
    version = push(store, b"one")

    assert store.verify(version.digest).read_bytes() == b"one"


def test_a_blob_set_aside_by_a_collection_that_died_is_restored(tmp_path: Path) -> None:
    store = store_with_runs(tmp_path, keep_versions=2, grace_s=0)
    version = push(store, b"one")
    blob = store.blob_path(version.digest)
    blob.rename(tmp_path / "staging" / f"{blob.name}.0.set-aside")

    store.collect()

    assert store.verify(version.digest).read_bytes() == b"one"


def test_collecting_without_pause_never_loses_what_was_committed(tmp_path: Path) -> None:
    store = store_with_runs(tmp_path, keep_versions=2, grace_s=0)
    stop = threading.Event()
    errors: list[BaseException] = []

    def collect() -> None:
        try:
            while not stop.is_set():
                WeightStore(tmp_path, keep_versions=2, max_bytes=1000, grace_s=0).collect()
        except BaseException as error:
            errors.append(error)
            raise

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        for step in range(60):
            push(store, b"%d" % (step % 5), step=step)  # the same weights come back and back
    finally:
        stop.set()
        collector.join(30)
    assert not collector.is_alive()
    assert errors == []
    store.collect()
    assert [version.version for version in store.versions("run", "learner")] == [59, 60]
    assert [store.verify(version.digest).read_bytes() for version in store.versions("run", "learner")] == [b"3", b"4"]
