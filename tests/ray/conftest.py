"""One Ray for the whole session, and the services that its tests compare."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from preceptor_service.app import RunningService, start_service
from preceptor_service.config import WeightsConfig, parse_config
from preceptor_service.ray_cluster import RayCluster

SERVICES = {
    "one-replica": {"replicas": 1, "micro_batch_rows": 256, "max_chunk_bytes": 4 << 20},
    "two-replicas": {"replicas": 2, "micro_batch_rows": 100, "max_chunk_bytes": 1000},
    "four-replicas": {"replicas": 4, "micro_batch_rows": 32, "max_chunk_bytes": 65536},
    "in-process": {"replicas": 1, "micro_batch_rows": 77, "max_chunk_bytes": 4096},
}
"""Every layout must select the same: replicas, micro-batch size, chunk size, pool."""


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    """The Ray that this session starts once."""
    cluster = RayCluster()
    yield cluster
    cluster.stop()


def start(
    layout_name: str, store: Path | WeightsConfig, name: str | None = None, architectures: dict[str, str] | None = None
) -> RunningService:
    """Starts a service with a layout of `SERVICES`, by default under the layout's name."""
    layout = SERVICES[layout_name]
    return start_service(
        parse_config(
            {
                "name": name or layout_name,
                "pool": "in-process" if layout_name == "in-process" else "ray",
                "gateway": {"host": "127.0.0.1", "port": 0, "max_chunk_bytes": layout["max_chunk_bytes"]},
                "metrics": {"host": "127.0.0.1", "port": 0},
                "weights": store.model_dump() if isinstance(store, WeightsConfig) else {"path": str(store)},
                "scorer": {
                    "replicas": layout["replicas"],
                    "micro_batch_rows": layout["micro_batch_rows"],
                    "num_cpus": 0.1,
                },
                "architectures": architectures or {},
            }
        )
    )


@pytest.fixture(scope="session", params=sorted(SERVICES))
def service(
    request: pytest.FixtureRequest, ray_cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    """Each service of `SERVICES` in turn."""
    running = start(request.param, tmp_path_factory.mktemp("store"))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def two_replicas(ray_cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service of its own with two scorers, for tests that kill them."""
    architectures = {
        "dawdler": "tests.service.mortal_service:dawdler",
        "breaking": "tests.ray.breaking:breaking",
    }
    running = start("two-replicas", tmp_path_factory.mktemp("store"), name="mortal", architectures=architectures)
    yield running
    running.stop()
