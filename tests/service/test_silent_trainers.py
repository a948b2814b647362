"""Trainers that are gone and never said so, or do not go on: what is held for them is freed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from preceptor import SelectionClient
from preceptor.v1 import ledger_pb2
from preceptor_service.app import RunningService
from tests.service import digits
from tests.service.architectures import Gate
from tests.service.conftest import MIB, Metrics, metrics_of, target_of, wait_until
from tests.service.raw import RawChannel, chunk, header, push_messages, select_open, super_batch
from tests.tcp_proxy import TcpProxy

SILENCE_S = 2.0
BODY = b"-" * 1000
TAKES_LITTLE = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
"""Options of a channel that does not read ahead."""


@pytest.fixture
def service(start: Callable[..., RunningService]) -> RunningService:
    return start(gateway={"silence_s": SILENCE_S})


@pytest.fixture
def target(service: RunningService) -> str:
    return target_of(service)


@pytest.fixture
def proxy(service: RunningService) -> Iterator[TcpProxy]:
    with TcpProxy(service.ports.grpc) as proxy:
        yield proxy


@pytest.fixture
def far(proxy: TcpProxy) -> Iterator[RawChannel]:
    """A channel by way of the proxy."""
    with RawChannel(f"127.0.0.1:{proxy.port}", timeout_s=120.0) as channel:
        yield channel


@pytest.mark.usefixtures("gated_run")
@pytest.mark.parametrize("how", ["vanish", "stall"])
def test_streams_of_a_half_open_trainer_are_freed_wherever_they_are(
    service: RunningService, proxy: TcpProxy, far: RawChannel, run_id: str, gate: Gate, how: str
) -> None:
    gate.close()
    metrics = metrics_of(service)
    silent = far.call("Select")
    idle, inside, scored = (far.call("Select", select_open(run_id)) for _ in range(3))
    for call in (idle, inside, scored):
        assert call.receive().HasField("opened")
    inside.send(header(BODY), chunk(BODY[:9]))
    scored.send(*super_batch(digits.gated_candidates(0)))
    gate.wait_for(arrived=1)
    wait_until(lambda: metrics.value("preceptor_select_streams") == 4, "all are open")
    wait_until(lambda: metrics.value("preceptor_in_flight_bytes") > 9, "both bodies began")

    getattr(proxy, how)()

    wait_until(lambda: metrics.value("preceptor_select_streams") == 0, "all were freed", 10 * SILENCE_S)
    assert metrics.value("preceptor_in_flight_bytes") == 0
    assert metrics.value("preceptor_unanswered_super_batches") == 0
    for call in (silent, idle, inside, scored):
        call.cancel()


def test_a_push_of_a_half_open_trainer_leaves_nothing(
    service: RunningService, proxy: TcpProxy, far: RawChannel, client: SelectionClient, run_id: str, tmp_path: Path
) -> None:
    client.create_run(digits.spec(run_id))
    staging = tmp_path / "store" / "staging"
    push = far.call("PushWeights", *push_messages(BODY, total_bytes=2000, run_id=run_id)[:2])
    wait_until(lambda: any(staging.iterdir()), "it is under way")
    proxy.vanish()
    wait_until(lambda: not any(staging.iterdir()), "it is given up", 10 * SILENCE_S)
    push.cancel()


def test_a_body_that_stops_on_a_living_connection_gives_its_room_to_others(
    start: Callable[..., RunningService], run_id: str
) -> None:
    messages = super_batch(digits.candidates(1))
    body = messages[1].chunk.data
    service = start(
        gateway={"silence_s": SILENCE_S, "body_bytes": len(body), "max_super_batch_bytes": len(body)},
    )
    with SelectionClient(target_of(service)) as client, RawChannel(target_of(service)) as raw:
        run = client.create_run(digits.spec(run_id, score="uniform", deadline_s=60))
        stopped = raw.call("Select", select_open(run_id), header(body), chunk(body[:9]))
        wait_until(lambda: metrics_of(service).value("preceptor_in_flight_bytes") == 9, "it began")
        assert run.select(digits.candidates(1), sub_batch_size=1, step=2).step == 2
        status = stopped.status()
    assert (status.code, status.reason) == ("UNAVAILABLE", "UNAVAILABLE")
    assert "nothing came for 2 s in the middle of a call; connect again and repeat it" in status.details


def test_answers_that_are_not_taken_are_given_up_and_the_stream_counts_until_it_is_gone(
    start: Callable[..., RunningService], run_id: str
) -> None:
    rows, count = 20_000, 30  # more answers than gRPC takes in of a stream that nobody reads
    limits = {"max_super_batch_rows": rows, "max_super_batch_bytes": MIB, "max_chunk_bytes": MIB}
    service = start(gateway={"silence_s": SILENCE_S, "window_bytes": count * MIB, **limits})
    metrics = metrics_of(service)
    with SelectionClient(target_of(service)) as client, RawChannel(target_of(service)) as raw:
        client.create_run(digits.gated_spec(run_id, score="uniform"))
        call = raw.call("Select", select_open(run_id))
        for step in range(count):
            call.send(*super_batch(digits.gated_candidates(step, rows), step=step, sub_batch_size=rows))
        wait_until(lambda: metrics.value("preceptor_super_batches_total", run=run_id) == count, "all were drawn")
        assert metrics.value("preceptor_in_flight_bytes") > 0
        wait_until(lambda: metrics.value("preceptor_in_flight_bytes") == 0, "they are given up", 10 * SILENCE_S)
        assert metrics.value("preceptor_unanswered_super_batches") == 0
        assert metrics.value("preceptor_select_streams") == 1
        status = call.status()
        assert (status.code, status.reason) == ("UNAVAILABLE", "UNAVAILABLE")
        assert "no answer was taken for 2 s; connect again and read them" in status.details
        wait_until(lambda: metrics.value("preceptor_select_streams") == 0, "it is gone")


def test_a_reader_of_a_ledger_that_takes_nothing_is_given_up(start: Callable[..., RunningService], run_id: str) -> None:
    rows = 20_000
    limits = {"max_super_batch_rows": rows, "max_super_batch_bytes": MIB, "max_chunk_bytes": MIB}
    service = start(gateway={"silence_s": SILENCE_S, "window_bytes": 4 * MIB, **limits})
    with SelectionClient(target_of(service)) as client, RawChannel(target_of(service), options=TAKES_LITTLE) as raw:
        run = client.create_run(digits.gated_spec(run_id, score="uniform", ledger=True))
        for step in range(10):
            run.select(digits.gated_candidates(step, rows), rows, step=step)
        call = raw.call("ReadLedger", ledger_pb2.ReadLedgerRequest(run_id=run_id))
        metrics = metrics_of(service)
        wait_until(lambda: metrics.value("preceptor_errors_total") == 1, "it is given up", 10 * SILENCE_S)
        status = call.status()
    assert (status.code, status.reason) == ("UNAVAILABLE", "UNAVAILABLE")
    assert "no answer was taken for 2 s; connect again and read them" in status.details


def test_a_trainer_that_gives_up_while_it_is_answered_is_no_error_of_the_service(
    start: Callable[..., RunningService], run_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows, times = 20_000, 20  # whether the write or the call ends first is chance
    limits = {"max_super_batch_rows": rows, "max_super_batch_bytes": MIB, "max_chunk_bytes": MIB}
    service = start(gateway={"window_bytes": 64 * MIB, **limits})
    metrics = metrics_of(service)
    with SelectionClient(target_of(service)) as client, RawChannel(target_of(service), options=TAKES_LITTLE) as raw:
        client.create_run(digits.gated_spec(run_id, score="uniform"))
        batch = digits.gated_candidates(0, rows)
        for number in range(times):
            call = raw.call("Select", select_open(run_id))
            for step in (2 * number, 2 * number + 1):
                call.send(*super_batch(batch, step=step, sub_batch_size=rows))
            wait_until(partial(_are_drawn, metrics, 2 * number + 2), "both are drawn")
            assert metrics.value("preceptor_unanswered_super_batches") > 0
            call.cancel()
            wait_until(lambda: metrics.value("preceptor_select_streams") == 0, "it is gone")
    assert metrics.value("preceptor_errors_total") == 0
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def _are_drawn(metrics: Metrics, count: int) -> bool:
    return metrics.value("preceptor_super_batches_total") == count


def test_a_client_that_was_cut_off_inside_a_body_sends_it_again(
    service: RunningService, proxy: TcpProxy, target: str, client: SelectionClient, run_id: str
) -> None:
    spec = digits.spec(run_id, score="uniform")
    client.create_run(spec)
    metrics = metrics_of(service)
    with SelectionClient(f"127.0.0.1:{proxy.port}", timeout_s=60.0) as trainer:
        run = trainer.get_run(run_id)
        run.select(digits.candidates(0), sub_batch_size=1, step=0)
        proxy.stall("up")
        future = run.submit(digits.candidates(1), sub_batch_size=1, step=1)
        wait_until(lambda: metrics.value("preceptor_select_streams") == 0, "the gateway gave it up", 10 * SILENCE_S)
        proxy.flow()
        assert future.result(60).step == 1


def test_a_body_that_trickles_in_is_not_waited_for_for_ever(
    service: RunningService, client: SelectionClient, run_id: str
) -> None:
    client.create_run(digits.spec(run_id, deadline_s=SILENCE_S / 2, score="uniform"))
    metrics, pause = metrics_of(service), threading.Event()
    with RawChannel(target_of(service)) as raw:
        call = raw.call("Select", select_open(run_id))
        assert call.receive().HasField("opened")
        call.send(header(BODY))

        def trickle() -> None:
            for offset in range(len(BODY)):
                call.send(chunk(BODY[offset : offset + 1], offset))
                if pause.wait(SILENCE_S / 20):
                    return

        trickling = threading.Thread(target=trickle)
        trickling.start()
        status = call.status()
        pause.set()
        trickling.join()
    assert status.code == "UNAVAILABLE"
    assert f"1000 bytes did not come within {SILENCE_S:.1f} s; raise the run's deadline_s" in status.details
    wait_until(lambda: metrics.value("preceptor_in_flight_bytes") == 0, "its room was given back")
