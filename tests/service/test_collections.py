"""When the service removes what expired from its store: without being pushed to, and where the disk is full."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preceptor import SelectionClient
from preceptor.errors import DiskFullError
from preceptor_service import collector
from preceptor_service.app import RunningService
from preceptor_service.weight_store import WeightStore
from tests.service import digits
from tests.service.conftest import target_of, wait_until

GRACE_S = 1.0


@pytest.fixture
def client(start: Callable[..., RunningService], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(collector, "_PAUSE_S", 0.1)
    service = start(gateway={"deadline_s": GRACE_S / 2}, weights={"grace_s": GRACE_S, "keep_versions": 2})
    with SelectionClient(target_of(service), timeout_s=20.0) as client:
        yield client


def blobs(tmp_path: Path) -> int:
    return len(list((tmp_path / "store" / "blobs").iterdir()))


def test_a_deleted_run_frees_its_room(client: SelectionClient, tmp_path: Path) -> None:
    run = client.create_run(digits.spec("freed"))
    run.push_weights(digits.weights(1), step=0)
    assert blobs(tmp_path) == 1
    client.delete_run("freed")
    wait_until(lambda: blobs(tmp_path) == 0, "its weights were removed")


def test_what_the_last_push_made_superfluous_goes_without_another_one(client: SelectionClient, tmp_path: Path) -> None:
    run = client.create_run(digits.spec("kept"))
    for step in range(4):
        run.push_weights(digits.weights(step), step=step)
    wait_until(lambda: blobs(tmp_path) == 2, "the older ones were removed")
    assert [version.step for version in WeightStore(tmp_path / "store", 2, 1 << 30).versions("kept", "learner")] == [
        2,
        3,
    ]


def test_a_full_disk_has_what_expired_removed(
    client: SelectionClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = client.create_run(digits.spec("full"))

    def full(*args: object, **kwargs: object) -> None:
        raise DiskFullError("the store cannot write")

    store = WeightStore(tmp_path / "store", 2, 1 << 30)
    store.put(b"expired")
    monkeypatch.setattr(WeightStore, "commit", full)
    with pytest.raises(DiskFullError):
        run.push_weights(digits.weights(1), step=0)
    wait_until(lambda: blobs(tmp_path) == 0, "room was made")
    monkeypatch.undo()
    assert run.push_weights(digits.weights(1), step=0).version == 1


def test_no_push_waits_until_what_expired_is_removed(client: SelectionClient, monkeypatch: pytest.MonkeyPatch) -> None:
    run = client.create_run(digits.spec("pushed"))
    begun, may_end, asked = threading.Event(), threading.Event(), itertools.count()

    def slow(store: WeightStore) -> None:
        next(asked)
        begun.set()
        assert may_end.wait(60)

    monkeypatch.setattr(WeightStore, "collect", slow)
    try:
        for seed in range(3):
            assert run.push_weights(digits.weights(seed), step=seed).step == seed
        assert begun.wait(60)
        assert next(asked) == 1  # one at a time
    finally:
        may_end.set()
