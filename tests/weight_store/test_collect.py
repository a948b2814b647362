"""What `collect` removes, and what it never may."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest

from preceptor.errors import WeightsNotFoundError
from preceptor_service import weight_store
from preceptor_service.storage import Storage
from preceptor_service.weight_collection import UPLOAD_GRACE_S
from preceptor_service.weight_store import WeightStore
from preceptor_service.weight_versions import WeightsVersion, create_manifest
from tests.stores import DirectoryPlace, Place
from tests.weight_store.pushing import push, store_with_runs


def test_the_newest_versions_and_the_reference_stay(place: Place) -> None:
    store = store_with_runs(place.open(), keep_versions=2)
    reference = push(store, b"reference", role="reference")
    versions = [push(store, b"%d" % step, step=step) for step in range(5)]

    place.age(100)
    store.collect()

    assert store.versions("run", "learner") == tuple(versions[-2:])
    assert place.names("blobs") == sorted(hexadecimal(version) for version in (reference, *versions[-2:]))
    assert place.names(place.versions("run")) == ["00000004.json", "00000005.json"]
    with pytest.raises(WeightsNotFoundError, match="no learner version 1"):
        store.version("run", "learner", 1)


def test_expired_versions_leave_a_trace_for_the_grace_period(place: Place) -> None:
    store = store_with_runs(place.open(), keep_versions=2, grace_s=3600)
    for step in range(3):
        push(store, b"%d" % step, step=step)

    store.collect()

    assert [version.version for version in store.versions("run", "learner")] == [2, 3]
    assert "00000001.json" in place.names(place.versions("run"))


def test_a_version_that_was_newest_for_long_stays_whole_for_the_grace_period_after_it_expired(place: Place) -> None:
    store = store_with_runs(place.open(), keep_versions=2, grace_s=60)
    pinned = push(store, b"0")
    place.age(100)
    for step in (1, 2, 3):
        push(store, b"%d" % step, step=step)

    store.collect()

    assert store.verify(pinned.digest).read_bytes() == b"0"
    place.age(100)
    store.collect()
    with pytest.raises(WeightsNotFoundError):
        store.require(pinned.digest)
    assert "00000001.json" not in place.names(place.versions("run"))


def test_versions_shared_by_two_runs_stay_while_one_names_them(place: Place) -> None:
    store = store_with_runs(place.open(), keep_versions=2)
    shared = push(store, b"shared")
    push(store, b"shared", run_id="other")
    store.delete_run("run")

    place.age(100)
    store.collect()

    assert place.names("blobs") == [hexadecimal(shared)]


def test_uploads_are_removed_once_nobody_writes_to_them(place: Place) -> None:
    store = store_with_runs(place.open(), keep_versions=2)
    alive, abandoned = store.stage(3), store.stage(3)
    long_ago = time.time() - UPLOAD_GRACE_S - 1
    os.utime(abandoned.path, (long_ago, long_ago))

    store.collect()

    assert alive.path.exists()
    assert not abandoned.path.exists()
    alive.close()
    abandoned.close()


def test_a_blob_that_a_collection_took_while_it_was_committed_comes_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_with_runs(place.open(), keep_versions=2)

    def collected_first(storage: Storage, folder: str, version: WeightsVersion) -> bool:
        place.age(100)
        store.collect()
        assert place.names("blobs") == []
        return create_manifest(storage, folder, version)

    monkeypatch.setattr(weight_store, "create_manifest", collected_first)
    version = push(store, b"one")

    assert place.names("blobs") == [hexadecimal(version)]


def test_a_blob_set_aside_by_a_collection_that_died_is_restored(place: Place) -> None:
    store = store_with_runs(place.open(), keep_versions=2)
    version = push(store, b"one")
    name = hexadecimal(version)
    place.open().rename(f"blobs/{name}", f"staging/{name}.0.set-aside")
    assert place.names("blobs") == []

    store.collect()

    assert place.names("blobs") == [name]


def test_a_version_whose_weights_a_collection_set_aside_and_died_is_served_without_waiting_for_the_next(
    place: Place,
) -> None:
    store = store_with_runs(place.open(), keep_versions=2)
    versions = [push(store, b"%d" % step, step=step) for step in range(3)]
    reads: tuple[Callable[[str], object], ...] = (store.blob_path, store.verify, store.require)

    for version, read in zip(versions, reads, strict=True):
        name = hexadecimal(version)
        place.open().rename(f"blobs/{name}", f"staging/{name}.0.set-aside")
        forget = getattr(place, "cache", None)
        if forget is not None:  # what lies on this machine is served whatever becomes of the object
            (forget / "blobs" / name).unlink()
        read(version.digest)

    assert place.names("blobs") == sorted(hexadecimal(version) for version in versions)
    assert place.names("staging") == []


def test_collecting_without_pause_never_loses_what_was_committed(place: Place) -> None:
    store = store_with_runs(place.open(), keep_versions=2)
    last = 60 if isinstance(place, DirectoryPlace) else 15
    stop = threading.Event()
    errors: list[BaseException] = []

    def collect() -> None:
        try:
            while not stop.is_set():
                WeightStore(place.open(), keep_versions=2, max_bytes=1000, grace_s=-10).collect()  # all are old
        except BaseException as error:
            errors.append(error)
            raise

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        for step in range(last):
            push(store, b"%d" % (step % 5), step=step)  # the same weights come back and back
    finally:
        stop.set()
        collector.join(30)
    assert not collector.is_alive()
    assert errors == []
    store.collect()
    versions = store.versions("run", "learner")
    assert [version.version for version in versions] == [last - 1, last]
    assert [store.verify(version.digest).read_bytes() for version in versions] == [b"3", b"4"]
    assert {hexadecimal(version) for version in versions} <= set(place.names("blobs"))


def hexadecimal(version: WeightsVersion) -> str:
    """The name of the version's blob."""
    return version.digest.removeprefix("sha256:")


def test_each_manifest_is_read_twice_however_much_is_removed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, reads = place.open(), list[str]()
    store = store_with_runs(storage, keep_versions=2)
    for step in range(3):
        push(store, b"%d" % step, step=step)
    for number in range(20):
        store.put(b"not named %d" % number)
    place.age(100)
    read = storage.read

    def counted(path: str) -> bytes:
        reads.append(path)
        return read(path)

    monkeypatch.setattr(storage, "read", counted)

    store.collect()

    assert len(place.names("blobs")) == 2
    assert len([path for path in reads if path.endswith(".json")]) == 2 * 2


def test_what_training_goes_on_from_stays_with_its_version(place: Place) -> None:
    store = store_with_runs(place.open(), keep_versions=2)
    for number in range(1, 5):
        weights, optimiser = store.put(b"weights %d" % number), store.put(b"optimiser %d" % number)
        store.commit_trained("run", WeightsVersion(number, number, weights, 9, time.time(), optimiser))

    place.age(100)
    store.collect()

    kept = store.versions("run", "learner")
    assert [version.version for version in kept] == [3, 4]
    named = {digest.removeprefix("sha256:") for version in kept for digest in version.digests}
    assert place.names("blobs") == sorted(named)
    assert len(named) == 4
