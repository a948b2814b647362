"""A gateway that is gone and never said so: the client notices, and asks elsewhere in time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from preceptor import Run, RunSpec, SelectionClient
from tests.client.conftest import candidates
from tests.client.fake_service import FakeService
from tests.tcp_proxy import TcpProxy

TIMEOUT_S = 8.0
"""Of the client: a silent connection is given up after half of it."""


@pytest.fixture
def elsewhere() -> Iterator[FakeService]:
    with FakeService() as elsewhere:
        yield elsewhere


@pytest.fixture
def proxy(service: FakeService) -> Iterator[TcpProxy]:
    with TcpProxy(service.port) as proxy:
        yield proxy


@pytest.fixture
def run(proxy: TcpProxy) -> Iterator[Run]:
    with SelectionClient(f"127.0.0.1:{proxy.port}", timeout_s=TIMEOUT_S) as client:
        yield client.create_run(RunSpec("digits", "small_cnn"))


def test_super_batches_under_way_to_a_half_open_gateway_are_answered_by_another_one_in_time(
    service: FakeService, elsewhere: FakeService, proxy: TcpProxy, run: Run
) -> None:
    service.on_super_batch = lambda stream, received: None
    futures = [run.submit(candidates(first=step), 2, step) for step in range(3)]
    service.wait_for("all arrived", lambda: len(service.received) == 3)
    proxy.vanish()
    proxy.target_port = elsewhere.port
    assert [future.result(2 * TIMEOUT_S).step for future in futures] == [0, 1, 2]
    assert [received.key for received in elsewhere.received] == [(0, 0), (1, 0), (2, 0)]


def test_a_gateway_that_vanished_while_the_trainer_trained_is_noticed_meanwhile(
    service: FakeService, elsewhere: FakeService, proxy: TcpProxy, run: Run
) -> None:
    run.select(candidates(), 2, 0)
    proxy.target_port = elsewhere.port
    proxy.vanish()
    service.wait_for("nobody reads that stream", lambda: not _is_read(run))
    assert run.select(candidates(first=1), 2, 1).step == 1


@pytest.mark.slow
def test_a_gateway_that_vanishes_late_in_a_long_wait_is_noticed_like_any_other(
    service: FakeService, elsewhere: FakeService, proxy: TcpProxy, run: Run
) -> None:
    service.on_super_batch = lambda stream, received: None
    future = run.submit(candidates(), 2, 0, timeout_s=10 * TIMEOUT_S)
    with pytest.raises(TimeoutError):
        future.result(1.5 * TIMEOUT_S)  # six pings without data, four more than gRPC would send by itself
    proxy.vanish()
    proxy.target_port = elsewhere.port
    assert future.result(2 * TIMEOUT_S).step == 0


def test_an_address_that_takes_connections_and_says_nothing_is_left_for_another_in_time(
    service: FakeService, elsewhere: FakeService, proxy: TcpProxy, run: Run
) -> None:
    run.select(candidates(), 2, 0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(2 * TIMEOUT_S)
        proxy.target_port = silent.getsockname()[1]
        proxy.cut()
        future = run.submit(candidates(first=1), 2, 1)
        taken, _ = silent.accept()
        proxy.target_port = elsewhere.port
        with taken:
            assert future.result(2 * TIMEOUT_S).step == 1


def _is_read(run: Run) -> bool:
    return any(thread.name == f"preceptor-reader-{run.run_id}" for thread in threading.enumerate())
