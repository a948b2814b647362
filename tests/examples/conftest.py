"""A service for the examples that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from preceptor_service.app import start_service
from preceptor_service.config import parse_config


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = {
        "pool": "in-process",
        "gateway": {"host": "127.0.0.1", "port": 0},
        "metrics": {"enabled": False},
        "scorer": {"threads": 1},
        "weights": {"path": tmp_path_factory.mktemp("store")},
    }
    service = start_service(parse_config(settings))
    yield f"127.0.0.1:{service.ports.grpc}"
    service.stop()
