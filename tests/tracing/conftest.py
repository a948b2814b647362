"""A collector, a service that sends its spans there, and runs of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from preceptor import RunSpec, SelectionClient
from preceptor_service.app import RunningService, start_service
from tests.service import digits
from tests.service.architectures import GATES, Gate
from tests.service.conftest import config, target_of
from tests.tracing.collector import Collector


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="session")
def service(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service with micro-batches of 16 rows, each tried for 2 seconds."""
    settings = config(
        tmp_path_factory.mktemp("store"),
        tracing={"endpoint": collector.endpoint, "service_name": "selection"},
        scorer={"micro_batch_timeout_s": 2.0},
    )
    service = start_service(settings)
    yield service
    service.stop()


@pytest.fixture(scope="session")
def target(service: RunningService) -> str:
    return target_of(service)


@pytest.fixture
def client(target: str) -> Iterator[SelectionClient]:
    with SelectionClient(target) as client:
        yield client


_numbers = itertools.count(1)


@pytest.fixture
def run_id() -> str:
    return f"traced-{next(_numbers)}"


def create(client: SelectionClient, spec: RunSpec) -> str:
    """Makes a run that can select, and returns its name."""
    run = client.create_run(spec)
    run.push_reference(digits.weights(2))
    run.push_weights(digits.weights(1), step=0)
    return run.run_id


@pytest.fixture
def run(client: SelectionClient, run_id: str) -> str:
    """The name of a run that can select."""
    return create(client, digits.spec(run_id))


@pytest.fixture
def gate(run_id: str) -> Iterator[Gate]:
    gate = GATES[run_id]
    yield gate
    gate.open()


@pytest.fixture
def gated_run(client: SelectionClient, run_id: str, gate: Gate) -> str:
    """The name of a run whose forward passes wait at `gate`."""
    client.create_run(digits.gated_spec(run_id)).push_weights(digits.gated_weights(1), step=0)
    return run_id


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RunningService]]:
    """Starts services with other settings of tracing, and stops them in the end."""
    started: list[RunningService] = []

    def start(**tracing: object) -> RunningService:
        started.append(start_service(config(tmp_path / "store", tracing=tracing)))
        return started[-1]

    yield start
    for service in started:
        service.stop()
