"""What a creation costs in the store: the runs of others are not read again for each."""

from __future__ import annotations

from typing import Any

import pytest

from preceptor import RunSpec
from preceptor.errors import OverloadedError, WeightsNotFoundError
from preceptor_service.access.caller import Caller, Grants
from preceptor_service.run_access import RunAccess
from preceptor_service.run_store import RunRecord, RunStore
from preceptor_service.weight_store import WeightStore
from tests.stores import Place
from tests.weight_store.pushing import push

CREATOR = Caller("creator", Grants({"create": ("team-*",)}))


def _created(store: RunStore, run_id: str, owner: str) -> None:
    store.create(RunRecord(RunSpec(run_id, "small_cnn"), 1234.5, 64, owner))


def test_runs_are_counted_by_their_creator_and_read_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, storage = RunStore(place.open()), place.open()
    access = RunAccess(RunStore(storage), WeightStore(storage, 2, 1000), max_runs_per_identity=2)
    for number in range(3):
        _created(elsewhere, f"team-{number}", "somebody else")
    _created(elsewhere, "team-mine-1", "creator")
    access.check_creation(CREATOR, "team-new", None)
    read: list[str] = []
    reading = RunStore.read

    def noted(self: RunStore, run_id: str) -> Any:
        read.append(run_id)
        return reading(self, run_id)

    monkeypatch.setattr(RunStore, "read", noted)
    access.check_creation(CREATOR, "team-new", None)
    assert read == ["team-new"]
    _created(elsewhere, "team-mine-2", "creator")
    with pytest.raises(OverloadedError, match=r"creator has 2 runs, as many as limits\.max_runs_per_identity allows"):
        access.check_creation(CREATOR, "team-new", None)
    elsewhere.delete("team-mine-1")
    access.check_creation(CREATOR, "team-new", None)


def test_a_reference_is_in_sight_in_any_run_that_the_caller_may_score(place: Place) -> None:
    storage = place.open()
    runs, weights = RunStore(storage), WeightStore(storage, 2, 1000)
    access = RunAccess(runs, weights, max_runs_per_identity=10)
    _created(runs, "team-a", "somebody else")
    _created(runs, "team-b", "creator")
    hidden = push(weights, b"hidden", run_id="team-a", role="reference").digest
    expired, older, newest = (push(weights, b"%d" % step, run_id="team-b", step=step).digest for step in range(3))
    for digest in (older, newest):
        access.check_creation(CREATOR, "team-new", digest)
    for digest in (hidden, expired):
        with pytest.raises(WeightsNotFoundError):
            access.check_creation(CREATOR, "team-new", digest)
    push(weights, b"hidden", run_id="team-b", role="reference")
    access.check_creation(CREATOR, "team-new", hidden)
