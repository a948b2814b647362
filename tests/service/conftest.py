"""One service for the whole session, on real sockets, with the in-process pool; each test takes runs of its own."""

from __future__ import annotations

import itertools
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from preceptor import Run, SelectionClient
from preceptor_service.app import RunningService, start_service
from preceptor_service.config import ServiceConfig, parse_config
from tests.service import digits
from tests.service.architectures import GATES, Gate
from tests.service.raw import RawChannel

KIB = 1024
MIB = 1024 * KIB
WINDOW_BYTES = 512 * KIB
MAX_SUPER_BATCH_BYTES = 256 * KIB
MAX_CHUNK_BYTES = 64 * KIB
MAX_ROWS = 2000
MAX_WEIGHTS_BYTES = 8 * MIB
MAX_STREAMS = 40


def config(store: Path, **sections: Any) -> ServiceConfig:
    """Settings of a small service on free ports; `sections` are merged into its sections."""
    settings: dict[str, Any] = {
        "pool": "in-process",
        "gateway": {
            "host": "127.0.0.1",
            "port": 0,
            "window_bytes": WINDOW_BYTES,
            "max_super_batch_bytes": MAX_SUPER_BATCH_BYTES,
            "max_chunk_bytes": MAX_CHUNK_BYTES,
            "max_super_batch_rows": MAX_ROWS,
            "max_streams": MAX_STREAMS,
        },
        "metrics": {"host": "127.0.0.1", "port": 0},
        "scorer": {"micro_batch_rows": 16},
        "weights": {"path": str(store), "max_bytes": MAX_WEIGHTS_BYTES},
        "architectures": {
            "gated": "tests.service.architectures:gated",
            "failing": "tests.service.architectures:failing",
            "paced": "tests.service.architectures:paced",
        },
        "rules": {name: f"tests.service.methods:{name}" for name in ("closest_losses", "hard_and_steep", "moody")},
        "selectors": {"first_of_the_best": "tests.service.methods:first_of_the_best"},
    }
    for name, section in sections.items():
        settings[name] = {**settings.get(name, {}), **section} if isinstance(section, dict) else section
    return parse_config(settings)


class Metrics:
    """What the service tells Prometheus."""

    def __init__(self, url: str) -> None:
        self._url = url

    def text(self) -> str:
        with urllib.request.urlopen(self._url, timeout=10) as answer:
            return str(answer.read().decode())

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name and labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def series(self) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        """Name and labels of every sample."""
        return {
            (sample.name, frozenset(sample.labels.items()))
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
        }

    def runs(self) -> set[str]:
        """The runs that any series names."""
        return {
            sample.labels["run"]
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
            if "run" in sample.labels
        }


class Control:
    """A run that has to answer correctly whatever was done to the service just before."""

    def __init__(self, client: SelectionClient) -> None:
        self._run = client.create_run(digits.spec("control", seed=3))
        self._learner, self._reference = digits.weights(1), digits.weights(2)
        self._run.push_reference(self._reference)
        self._run.push_weights(self._learner, step=0)
        self._steps = itertools.count(1)

    def check(self) -> None:
        step = next(self._steps)
        batch = digits.candidates(step)
        selection = self._run.select(batch, sub_batch_size=8, step=step)
        assert selection.indices.tolist() == digits.expected(
            self._run.spec, batch, self._learner, self._reference, count=8, step=step
        )


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Waits for something that another process or thread brings about."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"within {timeout_s:g} s it did not happen that {what}")
        pause.wait(0.01)


def target_of(service: RunningService) -> str:
    return f"127.0.0.1:{service.ports.grpc}"


def metrics_of(service: RunningService) -> Metrics:
    return Metrics(f"http://127.0.0.1:{service.ports.metrics}/metrics")


class Store:
    """The directory of the session's service."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def uploads(self) -> int:
        return len(list((self.path / "staging").iterdir()))

    def wait_for_uploads(self, count: int) -> None:
        wait_until(lambda: self.uploads() == count, f"{count} uploads are under way")


@pytest.fixture(scope="session")
def service_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def service(service_store: Store) -> Iterator[RunningService]:
    service = start_service(config(service_store.path))
    yield service
    service.stop()


@pytest.fixture(scope="session")
def target(service: RunningService) -> str:
    return target_of(service)


@pytest.fixture
def client(target: str) -> Iterator[SelectionClient]:
    with SelectionClient(target, timeout_s=20.0) as client:
        yield client


@pytest.fixture(scope="session")
def metrics(service: RunningService) -> Metrics:
    return metrics_of(service)


@pytest.fixture(scope="session")
def control(target: str) -> Iterator[Control]:
    with SelectionClient(target, timeout_s=20.0) as client:
        yield Control(client)


@pytest.fixture
def raw(target: str) -> Iterator[RawChannel]:
    with RawChannel(target) as channel:
        yield channel


_numbers = itertools.count(1)


@pytest.fixture
def run_id(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.originalname.lower())
    return f"{name.removeprefix('test-')[:50]}-{next(_numbers)}"


@pytest.fixture
def empty_run(client: SelectionClient, run_id: str) -> Run:
    """A run without weights."""
    return client.create_run(digits.spec(run_id))


@pytest.fixture
def run(empty_run: Run) -> Run:
    """A run with the weights of seed 1 as learner, pushed at step 0, and of seed 2 as reference."""
    empty_run.push_reference(digits.weights(2))
    empty_run.push_weights(digits.weights(1), step=0)
    return empty_run


@pytest.fixture
def gate(run_id: str) -> Iterator[Gate]:
    """The gate of the runs that bear this test's name; open in the end."""
    gate = GATES[run_id]
    yield gate
    gate.open()


@pytest.fixture
def gated_run(client: SelectionClient, run_id: str, gate: Gate) -> Run:
    """A run with a learner whose forward passes wait at `gate`."""
    run = client.create_run(digits.gated_spec(run_id))
    run.push_weights(digits.gated_weights(1), step=0)
    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RunningService]]:
    """Starts further services, on one store unless told otherwise, and stops them in the end."""
    started: list[RunningService] = []

    def start(store: Path | None = None, **sections: Any) -> RunningService:
        started.append(start_service(config(store or tmp_path / "store", **sections)))
        return started[-1]

    yield start
    for service in started:
        service.stop()
