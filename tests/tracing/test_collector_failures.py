"""A collector that is gone, stuck or strange costs spans, never a super-batch."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from preceptor import SelectionClient
from preceptor.v1 import selection_pb2
from preceptor_service.app import RunningService
from preceptor_service.config import TracingConfig
from preceptor_service.tracing import Arrival, start_tracing
from tests.access.certificates import Authority
from tests.service import digits
from tests.service.conftest import target_of
from tests.tracing.collector import Collector
from tests.tracing.conftest import create

QUEUED, SENT_AT_ONCE = 2048, 512


def select(target: str, run_id: str, steps: int) -> None:
    """Selects, and compares with the naive loop."""
    with SelectionClient(target) as client:
        handle = client.get_run(create(client, digits.spec(run_id)))
        for step in range(steps):
            batch = digits.candidates(step)
            selection = handle.select(batch, sub_batch_size=8, step=step)
            assert selection.indices.tolist() == digits.expected(
                handle.spec, batch, digits.weights(1), digits.weights(2), count=8, step=step
            )
            assert not selection.is_fallback


@pytest.fixture
def nobody() -> str:
    """An endpoint at which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def test_a_service_selects_and_stops_without_its_collector(nobody: str, start: Callable[..., RunningService]) -> None:
    service = start(endpoint=nobody)
    select(target_of(service), "alone", steps=3)
    service.stop()


def test_a_service_selects_and_stops_while_its_collector_hangs(start: Callable[..., RunningService]) -> None:
    with Collector() as collector, collector.hold():
        service = start(endpoint=collector.endpoint)
        select(target_of(service), "held", steps=3)
        collector.wait_for_held_call()
        select(target_of(service), "held-2", steps=3)
        service.stop()
        assert collector.spans == []


def test_stopping_sends_what_is_queued(start: Callable[..., RunningService]) -> None:
    with Collector() as collector:
        service = start(endpoint=collector.endpoint)
        select(target_of(service), "flushed", steps=1)
        service.stop()
        assert len(collector.spans.of_run("flushed")) == 9


def test_spans_that_the_collector_does_not_take_are_bounded() -> None:
    header = selection_pb2.SuperBatchHeader(step=1)
    arrival = Arrival("flood", header, started=0.0, received=0.0, is_repeat=True)

    async def answer() -> selection_pb2.SelectResponse:
        return selection_pb2.SelectResponse(selection=selection_pb2.Selection(step=1))

    async def flood() -> None:
        for _ in range(QUEUED):
            await tracing.super_batch(arrival, answer)

    with Collector() as collector:
        tracing = start_tracing(TracingConfig(endpoint=collector.endpoint))
        with collector.hold():
            asyncio.run(flood())  # two spans each
            collector.wait_for_held_call()
        tracing.stop()
        assert QUEUED <= len(collector.spans) <= QUEUED + SENT_AT_ONCE


def test_spans_travel_by_tls_to_a_collector_of_the_authority_that_is_trusted(
    start: Callable[..., RunningService], tmp_path: Path
) -> None:
    authority = Authority()
    trusted = tmp_path / "ca.crt"
    trusted.write_bytes(authority.pem)
    with Collector(authority.issue()) as collector, Collector(Authority("impostor").issue()) as impostor:
        for endpoint in (collector.endpoint, impostor.endpoint):
            service = start(endpoint=endpoint, ca=str(trusted))
            select(target_of(service), f"to-{endpoint.rpartition(':')[2]}", steps=1)
            service.stop()
        assert len(collector.spans) == 9
        assert impostor.spans == []
