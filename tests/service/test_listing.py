"""A list of runs costs what its reader may see, and wakes none of them."""

from __future__ import annotations

from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import grpc
import pytest

from preceptor import SelectionClient
from preceptor_service.app import RunningService
from preceptor_service.checked_specs import SpecChecker
from preceptor_service.run_store import RunStore
from preceptor_service.weight_store import WeightStore
from preceptor_service.weight_versions import WeightsVersion
from tests.access import calls
from tests.access.conftest import Guarded
from tests.service import digits
from tests.service.conftest import target_of


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs whose models are built, as they are when a run is activated."""
    found: list[str] = []
    check = SpecChecker.check

    async def noted(self: SpecChecker, spec: Any) -> Any:
        found.append(spec.run_id)
        return await check(self, spec)

    monkeypatch.setattr(SpecChecker, "check", noted)
    return found


def test_a_list_tells_what_is_stored_of_runs_that_it_leaves_asleep(
    start: Callable[..., RunningService], tmp_path: Path, checked: list[str]
) -> None:
    before = start(tmp_path / "kept")
    with SelectionClient(target_of(before)) as client:
        run = client.create_run(digits.spec("with-weights"))
        run.push_reference(digits.weights(2))
        for step in (3, 5):
            run.push_weights(digits.weights(step), step=step)
        client.create_run(digits.spec("without"))
        told = client.list_runs()
    before.stop()
    checked.clear()
    after = start(tmp_path / "kept")
    with SelectionClient(target_of(after)) as client, calls.channel(target_of(after)) as opened:
        assert client.list_runs() == told
        asleep = calls.answer(opened, "ListRuns", "").messages[0].runs
        assert checked == []
        awake = client.get_run("with-weights").status()
        assert checked == ["with-weights"]
        assert client.list_runs() == [awake, told[1]]
        listed = calls.answer(opened, "ListRuns", "").messages[0].runs
    assert [list(run.columns) for run in asleep] == [[], []]
    assert [[column.name for column in run.columns] for run in listed] == [["image", "label"], []]


def test_a_run_of_a_former_life_is_listed_as_the_present_one(
    start: Callable[..., RunningService], tmp_path: Path
) -> None:
    here, there = start(tmp_path / "kept"), start(tmp_path / "kept")
    with SelectionClient(target_of(here)) as one, SelectionClient(target_of(there)) as other:
        one.create_run(digits.spec("phoenix", seed=1)).push_weights(digits.weights(1), step=0)
        assert other.get_run("phoenix").status().learner_version == 1
        one.delete_run("phoenix")
        one.create_run(digits.spec("phoenix", seed=2))
        (listed,) = other.list_runs()
        assert (listed.spec.seed, listed.learner_version) == (2, None)


def test_a_run_whose_architecture_is_gone_is_listed_still(start: Callable[..., RunningService], tmp_path: Path) -> None:
    before = start(tmp_path / "kept")
    with SelectionClient(target_of(before)) as client:
        client.create_run(digits.gated_spec("orphan"))
    before.stop()
    after = start(tmp_path / "kept", architectures={"gated": "tests.service.architectures:failing"})
    with SelectionClient(target_of(after)) as client:
        assert [run.spec.run_id for run in client.list_runs()] == ["orphan"]


def test_a_list_reads_no_weights_of_runs_that_its_reader_may_not_see(
    tmp_path: Path, checked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Set[str]] = []
    heads = WeightStore.heads

    def noted(self: WeightStore, run_ids: Set[str]) -> dict[str, dict[str, WeightsVersion]]:
        asked.append(set(run_ids))
        return heads(self, run_ids)

    first = Guarded(tmp_path / "guarded")
    try:
        with calls.channel(first.target) as opened:
            assert calls.answer(opened, "CreateRun", "team-a", calls.bearer(first.token("owner"))).code == "OK"
    finally:
        first.service.stop()
    checked.clear()
    monkeypatch.setattr(WeightStore, "heads", noted)
    guarded = Guarded(tmp_path / "guarded")
    try:
        with calls.channel(guarded.target) as opened:
            assert _listed(opened, guarded, "stranger") == []
            assert _listed(opened, guarded, "scorer") == ["team-a"]
    finally:
        guarded.service.stop()
    assert asked == [set(), {"team-a"}]
    assert checked == []


def _listed(opened: grpc.Channel, guarded: Guarded, caller: str) -> list[str]:
    answer = calls.answer(opened, "ListRuns", "", calls.bearer(guarded.token(caller)))
    assert answer.code == "OK"
    return [run.spec.run_id for run in answer.messages[0].runs]


def test_records_are_read_once_however_often_runs_are_listed(
    start: Callable[..., RunningService], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = start(tmp_path / "kept")
    with SelectionClient(target_of(before)) as client:
        for number in range(3):
            client.create_run(digits.spec(f"run-{number}"))
    before.stop()
    read: list[str] = []
    reading = RunStore.read

    def noted(self: RunStore, run_id: str) -> Any:
        read.append(run_id)
        return reading(self, run_id)

    monkeypatch.setattr(RunStore, "read", noted)
    with SelectionClient(target_of(start(tmp_path / "kept"))) as client:
        read.clear()
        for _ in range(3):
            assert len(client.list_runs()) == 3
    assert sorted(read) == ["run-0", "run-1", "run-2"]
