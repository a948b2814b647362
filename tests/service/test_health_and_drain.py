"""A gateway that goes away: it says so, finishes what it accepted, and the trainer goes on elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from preceptor import SelectionClient
from preceptor_service.app import RunningService
from tests.service import digits
from tests.service.architectures import GATES, Gate
from tests.service.conftest import metrics_of, target_of, wait_until
from tests.service.raw import RawChannel, select_open, super_batch

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ["", "preceptor.v1.SelectionService", "preceptor.v1.WeightsService"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_gateway_that_answers_is_serving(raw: RawChannel, name: str) -> None:
    stub = health_pb2_grpc.HealthStub(raw.grpc)
    assert stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=20).status == SERVING


def test_the_health_of_an_unknown_service_is_not_found(raw: RawChannel) -> None:
    stub = health_pb2_grpc.HealthStub(raw.grpc)
    with pytest.raises(grpc.RpcError) as raised:
        stub.Check(health_pb2.HealthCheckRequest(service="preceptor.v9.Oracle"), timeout=20)
    assert raised.value.code().name == "NOT_FOUND"


class Stopping:
    """`service.stop()` in a thread."""

    def __init__(self, service: RunningService) -> None:
        self._thread = threading.Thread(target=service.stop)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(30)
        assert self.is_over


@pytest.fixture
def held(run_id: str, gate: Gate) -> Gate:
    gate.close()
    return gate


def _gated_service(start: Callable[..., RunningService], run_id: str) -> RunningService:
    service = start()
    with SelectionClient(target_of(service)) as client:
        client.create_run(digits.gated_spec(run_id)).push_weights(digits.gated_weights(1), step=0)
    return service


def test_a_draining_gateway_finishes_what_it_accepted_and_says_goodbye(
    start: Callable[..., RunningService], run_id: str, held: Gate
) -> None:
    service = _gated_service(start, run_id)
    with RawChannel(target_of(service)) as channel:
        health = health_pb2_grpc.HealthStub(channel.grpc).Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(health).status == SERVING
        call = channel.call("Select", select_open(run_id))
        sent = [super_batch(digits.gated_candidates(step), step=step, sub_batch_size=2) for step in (1, 2, 3)]
        for messages in sent:
            call.send(*messages)
        body_bytes = sum(len(chunk.chunk.data) for _, chunk in sent)
        metrics = metrics_of(service)
        wait_until(lambda: metrics.value("preceptor_in_flight_bytes") == body_bytes, "all three arrived")
        idle = channel.call("Select", select_open(run_id))
        idle.receive()

        stopping = Stopping(service)
        assert next(health).status == NOT_SERVING
        status = idle.status()
        assert (status.code, status.reason) == ("UNAVAILABLE", "GATEWAY_DRAINING")
        assert "connect again" in status.details
        assert not stopping.is_over
        health.cancel()

        held.open()
        assert [call.answer().selection.step for _ in range(3)] == [1, 2, 3]
        status = call.status()
        assert (status.code, status.reason) == ("UNAVAILABLE", "GATEWAY_DRAINING")
        stopping.join()


def test_a_draining_gateway_takes_nothing_new(start: Callable[..., RunningService], run_id: str, held: Gate) -> None:
    service = _gated_service(start, run_id)
    with RawChannel(target_of(service)) as channel, RawChannel(target_of(service)) as other:
        grpc.channel_ready_future(other.grpc).result(20)
        call = channel.call("Select", select_open(run_id), *super_batch(digits.gated_candidates(1)))
        held.wait_for(arrived=1)
        health = health_pb2_grpc.HealthStub(other.grpc).Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(health).status == SERVING
        stopping = Stopping(service)
        assert next(health).status == NOT_SERVING
        assert other.call("Select", select_open(run_id)).status().code == "UNAVAILABLE"
        health.cancel()
        held.open()
        assert call.answer().WhichOneof("kind") == "selection"
        call.cancel()
        stopping.join()


def test_what_takes_longer_than_the_drain_is_given_up(
    start: Callable[..., RunningService], run_id: str, held: Gate
) -> None:
    service = start(gateway={"drain_s": 0.2})
    with SelectionClient(target_of(service)) as client:
        client.create_run(digits.gated_spec(run_id)).push_weights(digits.gated_weights(1), step=0)
    with RawChannel(target_of(service)) as channel:
        call = channel.call("Select", select_open(run_id), *super_batch(digits.gated_candidates(1)))
        held.wait_for(arrived=1)
        stopping = Stopping(service)
        assert call.status().code in ("UNAVAILABLE", "CANCELLED")
        held.open()
        stopping.join()


def test_a_call_that_never_says_anything_does_not_hold_up_the_drain(
    start: Callable[..., RunningService], run_id: str
) -> None:
    service = start()
    with RawChannel(target_of(service)) as channel:
        silent = channel.call("Select")
        grpc.channel_ready_future(channel.grpc).result(20)
        stopping = Stopping(service)
        status = silent.status()
        assert status.code == "UNAVAILABLE"
        stopping.join()


def test_a_trainer_goes_on_at_another_gateway_without_losing_or_repeating_a_step(
    start: Callable[..., RunningService], tmp_path: Path, run_id: str
) -> None:
    first = start(tmp_path / "shared")
    port = first.ports.grpc
    with SelectionClient(target_of(first), timeout_s=30.0) as client:
        run = client.create_run(digits.gated_spec(run_id))
        run.push_weights(digits.gated_weights(1), step=0)
        gate = GATES[run_id]
        gate.close()
        futures = [
            run.submit(digits.gated_candidates(step, rows=32), sub_batch_size=4, step=step) for step in range(12)
        ]
        gate.wait_for(arrived=1)
        stopping = Stopping(first)
        gate.open()
        stopping.join()
        second = start(tmp_path / "shared", gateway={"port": port})
        answers = [future.result(30) for future in futures]
        late = [run.select(digits.gated_candidates(step, rows=32), 4, step=step) for step in range(12, 15)]
        assert [answer.step for answer in answers + late] == list(range(15))
        assert run.status().super_batches >= 3  # of the second gateway alone
        repeated = [run.select(digits.gated_candidates(step, rows=32), 4, step=step) for step in range(15)]
        assert [answer.indices.tolist() for answer in repeated] == [
            answer.indices.tolist() for answer in answers + late
        ]
        assert second.ports.grpc == port
