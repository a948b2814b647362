"""A gateway that goes away: it says so, finishes what it accepted, and the trainer goes on elsewhere."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from preceptor import SelectionClient
from preceptor_service.app import RunningService
from preceptor_service.gateway.health_service import MAX_WATCHERS
from tests.reliability import http2
from tests.service import digits
from tests.service.architectures import GATES, Gate
from tests.service.conftest import metrics_of, target_of, wait_until
from tests.service.raw import RawChannel, select_open, super_batch

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ["", "preceptor.v1.SelectionService", "preceptor.v1.WeightsService"]
NO_WINDOW = (4, 0)
"""SETTINGS_INITIAL_WINDOW_SIZE: whoever sends it takes no data."""


@pytest.mark.parametrize("name", SERVICES)
def test_a_gateway_that_answers_is_serving(raw: RawChannel, name: str) -> None:
    stub = health_pb2_grpc.HealthStub(raw.grpc)
    assert stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=20).status == SERVING


def test_the_health_of_an_unknown_service_is_not_found(raw: RawChannel) -> None:
    stub = health_pb2_grpc.HealthStub(raw.grpc)
    with pytest.raises(grpc.RpcError) as raised:
        stub.Check(health_pb2.HealthCheckRequest(service="preceptor.v9.Oracle"), timeout=20)
    assert raised.value.code().name == "NOT_FOUND"


def watch(channel: grpc.Channel, name: str = "") -> Any:
    return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=name), timeout=20)


def test_whoever_watches_a_service_that_there_is_not_is_told_so_and_may_wait(raw: RawChannel) -> None:
    unknown = watch(raw.grpc, "preceptor.v9.Oracle")
    assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    assert unknown.is_active()
    unknown.cancel()


def test_watchers_are_bounded_and_one_that_leaves_makes_room(start: Callable[..., RunningService]) -> None:
    with RawChannel(target_of(start())) as channel:
        watchers = [watch(channel.grpc) for _ in range(MAX_WATCHERS)]
        assert {next(watcher).status for watcher in watchers} == {SERVING}
        with pytest.raises(grpc.RpcError) as refused:
            next(watch(channel.grpc))
        assert refused.value.code().name == "RESOURCE_EXHAUSTED"
        stub = health_pb2_grpc.HealthStub(channel.grpc)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=20).status == SERVING
        watchers[0].cancel()
        wait_until(lambda: _is_told(watch(channel.grpc)), "there is room for another one")
        for watcher in watchers:
            watcher.cancel()


def _is_told(watcher: Any) -> bool:
    try:
        return bool(next(watcher).status == SERVING)
    except grpc.RpcError:
        return False


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


def test_every_watcher_hears_of_the_drain_though_others_left_and_none_holds_it_up(
    start: Callable[..., RunningService],
) -> None:
    service = start(gateway={"drain_s": 60.0})
    with RawChannel(target_of(service)) as channel:
        watchers = [watch(channel.grpc, name) for name in (*SERVICES, *SERVICES)]
        assert {next(watcher).status for watcher in watchers} == {SERVING}
        for left in watchers[:3]:
            left.cancel()
        another = watch(channel.grpc)  # answered after the server saw them leave
        assert next(another).status == SERVING
        stopping = Stopping(service)
        for watcher in (*watchers[3:], another):
            assert [message.status for message in watcher] == [NOT_SERVING]
        stopping.join()


def test_a_watcher_that_does_not_read_keeps_nobody_from_hearing_of_the_drain(
    start: Callable[..., RunningService], run_id: str
) -> None:
    service = start(gateway={"drain_s": 1.0})
    with (
        SelectionClient(target_of(service)) as client,
        RawChannel(target_of(service)) as channel,
        socket.create_connection(("127.0.0.1", service.ports.grpc), timeout=20) as stranger,
    ):
        client.create_run(digits.spec(run_id))
        idle = channel.call("Select", select_open(run_id))
        idle.receive()
        _, *asks = http2.call("/grpc.health.v1.Health/Watch", [b""])
        frames = [http2.Frame(http2.SETTINGS, payload=struct.pack(">HI", *NO_WINDOW)), *asks]
        stranger.sendall(http2.PREFACE + b"".join(frame.encode() for frame in frames))
        _wait_for_headers(stranger)
        health = watch(channel.grpc)
        assert next(health).status == SERVING
        stopping = Stopping(service)
        assert next(health).status == NOT_SERVING
        assert idle.status().reason == "GATEWAY_DRAINING"
        stopping.join()


def _wait_for_headers(connection: socket.socket) -> None:
    """Returns once the server began to answer the call."""
    with connection.makefile("rb") as frames:
        kind = None
        while kind != http2.HEADERS:
            head = frames.read(9)
            kind = head[3]
            frames.read(int.from_bytes(head[:3], "big"))


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
