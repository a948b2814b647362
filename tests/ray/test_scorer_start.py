"""A scorer replica holds the committed weights before Serve may call it healthy."""

from __future__ import annotations

from pathlib import Path

import pytest

from preceptor import SelectionClient
from preceptor_service.config import parse_config
from preceptor_service.method_registry import MethodRegistry
from preceptor_service.run_store import RunStore
from preceptor_service.scoring.ray_scorer import Scorer
from preceptor_service.scoring.run_models import committed_models
from preceptor_service.weight_store import WeightStore
from tests.ray.candidates import ready_run, spec, state
from tests.ray.conftest import start


@pytest.fixture
def store_with_two_runs(tmp_path: Path) -> Path:
    """A store in which "first" got its weights before "second"."""
    service = start("in-process", tmp_path)
    try:
        with SelectionClient(f"127.0.0.1:{service.ports.grpc}") as client:
            ready_run(client, spec("first"))
            ready_run(client, spec("second")).push_weights(state("learner-2"), step=7)
            client.create_run(spec("never-pushed"))
    finally:
        service.stop()
    return tmp_path


def test_a_new_scorer_holds_the_latest_version_of_every_run(store_with_two_runs: Path) -> None:
    expected = committed_models(
        RunStore(store_with_two_runs),
        WeightStore(store_with_two_runs, keep_versions=4, max_bytes=1 << 30),
        MethodRegistry(),
    )
    assert [models.run_id for models in expected] == ["second", "first"]
    scorer = Scorer(parse_config({"weights": {"path": str(store_with_two_runs)}}).model_dump(mode="json"))
    wanted = {ref for models in expected for ref in (models.learner, models.reference)}
    assert set(scorer.loaded()) == wanted
    assert len(wanted) == 3  # two learners, and one reference that both runs share by content


def test_a_scorer_with_little_room_loads_the_most_recent_run_only(store_with_two_runs: Path) -> None:
    room = {"weights": {"path": str(store_with_two_runs)}, "scorer": {"model_bytes": 32_000}}
    scorer = Scorer(parse_config(room).model_dump(mode="json"))
    weights = WeightStore(store_with_two_runs, keep_versions=4, max_bytes=1 << 30)
    learners = [models.learner for models in committed_models(RunStore(store_with_two_runs), weights, MethodRegistry())]
    assert learners[0] in scorer.loaded()
    assert learners[1] not in scorer.loaded()
