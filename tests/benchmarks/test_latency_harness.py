from __future__ import annotations

from pathlib import Path

from benchmarks import latency
from benchmarks.null_model import ARCHITECTURES
from benchmarks.processes import child
from preceptor_service.app import start_service
from preceptor_service.config import parse_config


def test_the_latency_harness_times_our_service_and_a_bare_server(tmp_path: Path) -> None:
    config = parse_config(
        {
            "pool": "in-process",
            "gateway": {"host": "127.0.0.1", "port": 0},
            "metrics": {"host": "127.0.0.1", "port": 0},
            "weights": {"path": str(tmp_path)},
            "architectures": ARCHITECTURES,
        }
    )
    service = start_service(config)
    try:
        with child("bare_grpc", str(latency.ANSWER_BYTES)) as bare:
            numbers = latency.measure(service.ports.grpc, bare.hello["grpc"], None, rounds=2, repeats=1)
    finally:
        service.stop()
    assert set(numbers) == {"preceptor", "bare"}
    assert all(number > 0 for rounds in numbers.values() for numbers_ in rounds for number in numbers_)
