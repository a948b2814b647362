"""The service of one run: in this process, on a socket of this machine, with a store of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.learning.models import ARCHITECTURES
from preceptor import SelectionClient
from preceptor_service.app import start_service
from preceptor_service.config import parse_config


@contextmanager
def client_of_new_service(super_batch_size: int, tables: Path | None) -> Iterator[SelectionClient]:
    """Starts a service without Ray, one scorer with one thread, and yields a client of it.

    Args:
        super_batch_size: B; one forward pass takes all of it.
        tables: directory of tables of reference losses.
    """
    with tempfile.TemporaryDirectory(prefix="preceptor-learning-") as store:
        config = parse_config(
            {
                "pool": "in-process",
                "architectures": dict(ARCHITECTURES),
                "gateway": {"host": "127.0.0.1", "port": 0},
                "metrics": {"enabled": False},
                "scorer": {"threads": 1, "device": "cpu", "micro_batch_rows": super_batch_size},
                "weights": {"path": store},
                "reference_losses": {"directory": None if tables is None else str(tables)},
            }
        )
        service = start_service(config)
        try:
            with SelectionClient(f"127.0.0.1:{service.ports.grpc}") as client:
                yield client
        finally:
            service.stop()
