"""A fake service on a real socket, a client of it, and a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from preceptor import Run, RunSpec, SelectionClient
from tests.client.fake_service import FakeService


@pytest.fixture
def service() -> Iterator[FakeService]:
    with FakeService() as service:
        yield service


@pytest.fixture
def client(service: FakeService) -> Iterator[SelectionClient]:
    with SelectionClient(service.target, timeout_s=20.0) as client:
        yield client


@pytest.fixture
def run(client: SelectionClient) -> Run:
    return client.create_run(RunSpec("digits", "small_cnn"))


def candidates(rows: int = 8, first: int = 0, width: int = 4) -> dict[str, Any]:
    """A super-batch whose images all differ, and differ for every `first`."""
    images = (np.arange(rows * width, dtype=np.float32) + first).reshape(rows, width)
    return {"image": images, "label": np.arange(rows, dtype=np.int64) + first}
