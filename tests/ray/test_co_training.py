"""Co-training on Ray: scorers train, and one that dies while it does costs time and nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from preceptor import CoTraining, SelectionClient
from preceptor_service.app import RunningService, start_service
from preceptor_service.config import parse_config
from preceptor_service.ray_cluster import RayCluster
from tests.processes import pids_titled
from tests.service import co_trained, digits
from tests.service.co_trained import naive, same, select, weights_of
from tests.service.conftest import wait_until
from tests.service.mortal_service import began_at

pytestmark = pytest.mark.ray

NAME = "co-training"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def service(ray_cluster: RayCluster, store: Path) -> Iterator[RunningService]:
    settings = {
        "name": NAME,
        "gateway": {"host": "127.0.0.1", "port": 0},
        "metrics": {"host": "127.0.0.1", "port": 0},
        "weights": {"path": str(store)},
        "scorer": {"replicas": 2, "micro_batch_rows": 16, "num_cpus": 0.1, "threads": 1},
        "architectures": {"dawdler": "tests.service.mortal_service:dawdler"},
    }
    running = start_service(parse_config(settings))
    yield running
    running.stop()


@contextmanager
def one_thread() -> Iterator[None]:
    """As many as the scorers have: the order in which a sum is added up depends on it, and so does its last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_scorers_that_die_while_they_train_change_nothing(service: RunningService, store: Path, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    model = {"model": "dawdler", "model_config": {**digits.MODEL, "hold": str(hold)}}
    how = CoTraining(learning_rate=0.01, publish_every=2)
    spec = co_trained.spec("mortal", how, deadline_s=100, **model)
    with one_thread():
        story = naive(co_trained.spec("mortal", how), 6)
    with SelectionClient(f"127.0.0.1:{service.ports.grpc}", timeout_s=120) as client:
        run = client.create_run(spec)
        run.push_reference(co_trained.REFERENCE)
        for step in range(6):
            if step == 3:
                hold.touch()  # what trains on steps 2 and 3 waits
            assert select(run, step).indices.tolist() == story.indices[step, 0]
            if step == 3:
                wait_until(began_at(hold).exists, "a scorer trains")
                for pid in pids_titled(f"ray::ServeReplica:{NAME}:Scorer"):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                hold.unlink()
        trained = weights_of(store, "mortal", 4)
    assert same(trained, story.weights[-1])
