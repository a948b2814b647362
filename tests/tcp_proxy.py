"""A TCP proxy that does to connections what networks do: delays, stalls, resets, and peers that vanish."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, get_args

Way = Literal["up", "down"]
"""Up: from whoever connects to the target. Down: back."""

_READ_BYTES = 65536
_UNDER_WAY = 64
"""Pieces that latency holds back, in each way of a connection."""
_TIMEOUT_S = 10.0


class TcpProxy:
    """Forwards a port of this machine to `target_port`, on a thread of its own, until closed.

    Attributes:
        port: where to connect.
        connections: how many were taken.
        target_port: where the next ones lead.
        latency_s: of each way, for what comes from now on.
    """

    def __init__(self, target_port: int, latency_s: float = 0.0) -> None:
        self.target_port = target_port
        self.latency_s = latency_s
        self.connections = 0
        self._open: set[_Connection] = set()
        self._flows: dict[Way, asyncio.Event] = {way: asyncio.Event() for way in get_args(Way)}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._do(self._listen())
        self.port: int = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Resets every open connection; new ones are taken."""
        self._do(self._reset())

    def stall(self, *ways: Way) -> None:
        """Stops to read what goes those ways, both where none is named, of open connections and new ones."""
        self._do(self._set_flowing(False, ways))

    def flow(self, *ways: Way) -> None:
        """Ends a stall; nothing is lost."""
        self._do(self._set_flowing(True, ways))

    def vanish(self) -> None:
        """Leaves every open connection half-open: either end may send, nothing arrives, not even its end.

        New connections are taken.
        """
        self._do(self._lose())

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_TIMEOUT_S)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_TIMEOUT_S)

    async def _listen(self) -> asyncio.Server:
        await self._set_flowing(True, ())
        return await asyncio.start_server(self._forward, "127.0.0.1", 0, backlog=1024)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = _Connection(self, (reader, writer), self._flows)
        self._open.add(connection)
        try:
            await connection.carry()
        finally:
            self._open.discard(connection)

    async def _reset(self) -> None:
        for connection in self._open:
            connection.reset()

    async def _lose(self) -> None:
        for connection in self._open:
            connection.is_lost = True

    async def _set_flowing(self, is_flowing: bool, ways: tuple[Way, ...]) -> None:
        for way in ways or get_args(Way):
            (self._flows[way].set if is_flowing else self._flows[way].clear)()

    async def _close(self) -> None:
        self._server.close()
        await self._set_flowing(True, ())
        await self._reset()
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not asyncio.current_task()))


_End = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_Pieces = asyncio.Queue[tuple[float, bytes | None]]
"""When each is due, and what it is; at last nothing, for an end, or None, for a reset."""


class _Connection:
    """Both ends of one connection, and what is on its way between them."""

    def __init__(self, proxy: TcpProxy, near: _End, flows: dict[Way, asyncio.Event]) -> None:
        self.is_lost = False
        self._proxy = proxy
        self._near = near
        self._writers = [near[1]]
        self._flows = flows

    def reset(self) -> None:
        for writer in self._writers:
            _reset(writer)

    async def carry(self) -> None:
        """Returns once both ways have ended."""
        try:
            far = await asyncio.open_connection("127.0.0.1", self._proxy.target_port)
        except OSError:
            self.reset()
            return
        self._writers.append(far[1])
        if self._near[1].is_closing():  # it was cut meanwhile
            self.reset()
        up, down = _Pieces(_UNDER_WAY), _Pieces(_UNDER_WAY)
        await asyncio.gather(
            self._take(self._near[0], up, self._flows["up"]),
            self._give(far[1], up, self._flows["up"]),
            self._take(far[0], down, self._flows["down"]),
            self._give(self._near[1], down, self._flows["down"]),
        )
        for writer in self._writers:
            writer.close()

    async def _take(self, reader: asyncio.StreamReader, pieces: _Pieces, flows: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        data: bytes | None = b"-"
        while data:
            await flows.wait()
            try:
                data = await reader.read(_READ_BYTES)
            except OSError:
                data = None
            await pieces.put((loop.time() + self._proxy.latency_s, data))

    async def _give(self, writer: asyncio.StreamWriter, pieces: _Pieces, flows: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        data: bytes | None = b"-"
        while data:
            due, data = await pieces.get()
            if (left_s := due - loop.time()) > 0:
                await asyncio.sleep(left_s)
            await flows.wait()
            if self.is_lost:
                continue
            try:
                await _pass_on(writer, data)
            except OSError:
                continue  # that end is gone; the other way tells


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection by RST: closing alone sends FIN."""
    with suppress(OSError):  # it is closed
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _pass_on(writer: asyncio.StreamWriter, data: bytes | None) -> None:
    if writer.is_closing():
        return
    if data is None:
        _reset(writer)
    elif data:
        writer.write(data)
        await writer.drain()
    else:
        writer.write_eof()
