"""A file system that is really full: what is refused, what goes on, and that it is over once there is room."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from preceptor.errors import DiskFullError
from preceptor_service.weight_store import WeightStore
from tests.prerequisites import lacking
from tests.weight_store.pushing import push, store_with_runs

KIB = 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        lacking("the right to mount a file system")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_pushes_are_refused_while_versions_stay_readable_and_are_taken_again_once_there_is_room(
    small_disk: Path,
) -> None:
    store = store_with_runs(small_disk, keep_versions=2, max_bytes=1024 * KIB)
    first = push(store, os.urandom(300 * KIB), step=1)
    (small_disk / "ballast").write_bytes(bytes(500 * KIB))

    with pytest.raises(DiskFullError, match="the store cannot write: No space left on device; free space or delete"):
        push(store, os.urandom(400 * KIB), step=2)

    assert list((small_disk / "staging").iterdir()) == []
    assert store.head("run", "learner") == first
    store.verify(first.digest)
    (small_disk / "ballast").unlink()
    assert push(store, os.urandom(400 * KIB), step=2).version == 2


def test_not_even_a_manifest_fits(small_disk: Path) -> None:
    store = store_with_runs(small_disk, keep_versions=2, max_bytes=1024 * KIB)
    first = push(store, b"first", step=1)
    content = os.urandom(16 * KIB)
    with store.stage(len(content)) as staged:
        staged.write(content)
        staged.seal(hashlib.sha256(content).digest())
        _fill(small_disk / "ballast")
        with pytest.raises(DiskFullError):
            store.commit("run", "learner", staged, step=2, base_version=1)

    assert store.head("run", "learner") == first
    assert not store.probe().is_writable
    (small_disk / "ballast").unlink()
    assert store.probe().is_writable
    assert push(WeightStore(small_disk, 2, 1024 * KIB), content, step=2).version == 2


def _fill(file: Path) -> None:
    with file.open("wb", buffering=0) as opened:
        try:
            while True:
                opened.write(bytes(4 * KIB))
        except OSError:
            pass
