"""The proxy that breaks connections for other tests breaks them as it says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.service.conftest import wait_until
from tests.tcp_proxy import TcpProxy, Way

MIB = 1024 * 1024
_TIMEOUT_S = 10.0
_QUIET_S = 0.1
"""How long nothing must come to say that nothing comes; a slow machine only makes the test easier to pass."""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(_TIMEOUT_S)
        yield listener


@pytest.fixture
def proxy(listener: socket.socket) -> Iterator[TcpProxy]:
    with TcpProxy(_port(listener)) as proxy:
        yield proxy


@pytest.fixture
def ends(proxy: TcpProxy, listener: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Who connected, and the target."""
    near, far = _connected(proxy, listener)
    with near, far:
        yield near, far


def test_what_goes_in_comes_out_either_way_and_so_does_an_end(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    threading.Thread(target=near.sendall, args=(b"u" * MIB,), daemon=True).start()
    assert _received(far, MIB) == b"u" * MIB
    near.shutdown(socket.SHUT_WR)
    assert far.recv(1) == b""
    far.sendall(b"down")
    far.close()
    assert _received(near, 4) == b"down"
    assert near.recv(1) == b""


def test_a_slow_proxy_takes_its_time_each_way(listener: socket.socket) -> None:
    with TcpProxy(_port(listener), latency_s=0.2) as proxy:
        near, far = _connected(proxy, listener)
        with near, far:
            began = time.monotonic()
            near.sendall(b"up")
            assert _received(far, 2) == b"up"
            assert time.monotonic() - began >= 0.2
            far.sendall(b"down")
            assert _received(near, 4) == b"down"
            assert time.monotonic() - began >= 0.4


def test_a_cut_resets_both_ends_and_new_connections_are_taken(
    proxy: TcpProxy, listener: socket.socket, ends: tuple[socket.socket, socket.socket]
) -> None:
    near, far = ends
    proxy.cut()
    for end in (near, far):
        with pytest.raises(ConnectionResetError):
            end.recv(1)
    anew, its_far = _connected(proxy, listener)
    with anew, its_far:
        anew.sendall(b"up")
        assert _received(its_far, 2) == b"up"
    assert proxy.connections == 2


def test_a_reset_of_one_end_is_passed_on(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    near.close()
    with pytest.raises(ConnectionResetError):
        far.recv(1)


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_stall_holds_one_way_back_until_it_flows_again(
    proxy: TcpProxy, ends: tuple[socket.socket, socket.socket], way: Way
) -> None:
    sender, receiver = ends if way == "up" else ends[::-1]
    proxy.stall(way)
    receiver.sendall(b"the other way")
    assert _received(sender, 13) == b"the other way"
    sender.settimeout(0.0)
    _fill(sender)
    assert _is_quiet(receiver)
    proxy.flow(way)
    receiver.settimeout(_TIMEOUT_S)
    assert receiver.recv(1) == b"-"


def test_a_peer_that_vanished_takes_everything_and_says_nothing(
    proxy: TcpProxy, listener: socket.socket, ends: tuple[socket.socket, socket.socket]
) -> None:
    near, far = ends
    proxy.vanish()
    far.settimeout(_TIMEOUT_S)
    far.sendall(b"-" * 16 * MIB)
    near.sendall(b"up")
    assert _is_quiet(near)
    assert _is_quiet(far)
    far.close()
    assert _is_quiet(near), "not even the end of the other one"
    anew, its_far = _connected(proxy, listener)
    with anew, its_far:
        its_far.sendall(b"down")
        assert _received(anew, 4) == b"down"


def test_new_connections_lead_to_a_new_target(proxy: TcpProxy, ends: tuple[socket.socket, socket.socket]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(_TIMEOUT_S)
        proxy.target_port = _port(other)
        anew, its_far = _connected(proxy, other)
        with anew, its_far:
            anew.sendall(b"up")
            assert _received(its_far, 2) == b"up"
    ends[0].sendall(b"old")
    assert _received(ends[1], 3) == b"old"


def test_closing_a_stalled_proxy_ends_what_it_held(listener: socket.socket) -> None:
    with TcpProxy(_port(listener)) as proxy:
        near, far = _connected(proxy, listener)
        proxy.stall()
        near.sendall(b"up")
    wait_until(lambda: _is_over(near) and _is_over(far), "both ends are told")
    near.close()
    far.close()


def _port(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def _connected(proxy: TcpProxy, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    near = socket.create_connection(("127.0.0.1", proxy.port), _TIMEOUT_S)
    far, _ = listener.accept()
    far.settimeout(_TIMEOUT_S)
    return near, far


def _received(end: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = end.recv(count - len(data))
        assert part, "the connection ended"
        data += part
    return data


def _fill(end: socket.socket) -> None:
    """Sends until the buffers on the way are full."""
    with suppress(BlockingIOError):
        while True:
            end.sendall(b"-" * 65536)


def _is_quiet(end: socket.socket) -> bool:
    end.settimeout(_QUIET_S)
    try:
        end.recv(1)
    except TimeoutError:
        return True
    return False


def _is_over(end: socket.socket) -> bool:
    end.settimeout(_QUIET_S)
    try:
        return end.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
