"""Raw HTTP/2: valid calls as frames, their mutations, and what the server makes of them."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

import grpc
import hpack

from preceptor.errors import REASON_METADATA_KEY
from tests.reliability.mutation import INTEGERS, mutated_bytes

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x4, 0x8, 0x20
_HEADER_BYTES = 9
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Frame:
    """One frame; `length` lies where it is given."""

    kind: int
    flags: int = 0
    stream: int = 0
    payload: bytes = b""
    length: int | None = None

    def encode(self) -> bytes:
        length = len(self.payload) if self.length is None else self.length
        head = struct.pack(">I", length % 2**24)[1:] + bytes((self.kind % 256, self.flags % 256))
        return head + struct.pack(">I", self.stream % 2**32) + self.payload


def headers_of(path: str) -> list[tuple[bytes, bytes]]:
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]


def literal(headers: Headers) -> bytes:
    """A header block without compression; nothing in it is checked."""
    block = bytearray()
    for name, value in headers:
        block += b"\0" + _prefixed(len(name)) + name + _prefixed(len(value)) + value
    return bytes(block)


def _prefixed(length: int) -> bytes:
    """An integer with a prefix of seven bits. Source: RFC 7541, section 5.1."""
    if length < 127:
        return bytes((length,))
    length -= 127
    encoded = bytearray((127,))
    while length >= 128:
        encoded.append(length % 128 + 128)
        length //= 128
    return bytes((*encoded, length))


def messages(requests: Sequence[bytes]) -> bytes:
    """Messages in gRPC's framing."""
    return b"".join(b"\0" + struct.pack(">I", len(request)) + request for request in requests)


def call(path: str, requests: Sequence[bytes]) -> list[Frame]:
    """A valid call, the first on its connection."""
    data = Frame(DATA, END_STREAM, 1, messages(requests))
    return [Frame(SETTINGS), Frame(HEADERS, END_HEADERS, 1, literal(headers_of(path))), data]


def case(rng: random.Random, calls: Sequence[tuple[str, Sequence[bytes]]]) -> bytes:
    """What one connection sends: a valid call with one to three things changed."""
    path, requests = rng.choice(calls)
    frames = call(path, requests)
    for _ in range(rng.randint(1, 3)):
        _change(rng, frames, path, requests)
    sent = b"".join(frame.encode() for frame in frames)
    preface = PREFACE if rng.random() < 0.97 else mutated_bytes(rng, PREFACE)
    return preface + (sent if rng.random() < 0.8 else mutated_bytes(rng, sent))


def _change(rng: random.Random, frames: list[Frame], path: str, requests: Sequence[bytes]) -> None:
    change, at = rng.random(), rng.randrange(len(frames))
    frame = frames[at]
    if change < 0.2:
        frames.insert(rng.randint(0, len(frames)), _stranger(rng))
    elif change < 0.4:
        block = literal(_changed_headers(rng, headers_of(path)))
        frames[at] = Frame(HEADERS, END_HEADERS | rng.choice((0, 0, END_STREAM)), 1, block)
    elif change < 0.55:
        data = bytearray(messages(requests))
        if data:
            data[0] = rng.choice((0, 0, 1, 2, 0xFF))
            data[1:5] = struct.pack(">I", rng.choice((len(data) - 5, 0, 1, 2**20, 2**21, 2**32 - 1, len(data))))
        frames[at] = Frame(DATA, END_STREAM, 1, bytes(data))
    elif change < 0.65:
        frames[at] = replace(frame, payload=mutated_bytes(rng, frame.payload))
    elif change < 0.7:
        frames[at] = replace(frame, length=rng.choice((0, 1, len(frame.payload) - 1, 16384, 16385, 2**24 - 1)))
    elif change < 0.75:
        frames[at] = replace(frame, flags=rng.choice((0, 1, 4, 5, _PADDED, _PRIORITY, 0xFF, rng.randrange(256))))
    elif change < 0.8:
        frames[at] = replace(frame, stream=rng.choice((0, 1, 2, 3, 2**31 - 1, 2**31, 5)))
    elif change < 0.85:
        frames[at] = replace(frame, kind=rng.choice((*range(11), 0x16, 0xFF)))
    elif change < 0.9 and len(frames) > 1:
        del frames[at]
    elif change < 0.95:
        frames.insert(at, frame)
    else:
        other = rng.randrange(len(frames))
        frames[at], frames[other] = frames[other], frames[at]


def _changed_headers(rng: random.Random, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    change, at = rng.random(), rng.randrange(len(headers))
    name, value = headers[at]
    if change < 0.2:
        del headers[at]
    elif change < 0.4:
        values = (
            b"",
            b"GET",
            b"*",
            b"/",
            b"//",
            b"/preceptor.v1.SelectionService/",
            b"\xff\xfe",
            b"a\r\nb",
            b"x" * 20000,
        )
        headers[at] = (name, rng.choice(values))
    elif change < 0.5:
        headers.insert(rng.randint(0, len(headers)), headers[at])
    elif change < 0.6:
        headers[at] = (rng.choice((name.upper(), b"", b":made-up", name + b"\0", b"connection")), value)
    else:
        more = (
            *((b"grpc-timeout", value) for value in (b"1n", b"0S", b"99999999H", b"-1S", b"x", b"1" * 30)),
            *((b"grpc-encoding", value) for value in (b"gzip", b"deflate", b"identity", b"made-up", b"")),
            *((b"authorization", value) for value in (b"", b"Bearer ", b"Bearer " + b"x" * 7000, b"\xff")),
            (b"grpc-accept-encoding", b"gzip,," * 50),
            (b"content-encoding", b"gzip"),
            (b"content-length", b"99999999999999999999"),
            (b"some-bin", b"!!!not base64!!!"),
            (b"user-agent", b"\0\1\2"),
        )
        headers += rng.choices(more, k=rng.choice((1, 1, 2, 50)))
    return headers


def _stranger(rng: random.Random) -> Frame:
    number = rng.choice(INTEGERS) % 2**32
    stream = rng.choice((0, 1, 1, 3))
    kinds = (
        Frame(PING, rng.choice((0, 1)), stream, bytes(rng.choice((8, 8, 7, 0)))),
        Frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", number)),
        Frame(SETTINGS, rng.choice((0, 1)), 0, struct.pack(">HI", rng.randrange(9), number) * rng.choice((1, 1, 200))),
        Frame(SETTINGS, 0, stream, bytes(5)),
        Frame(RST_STREAM, 0, stream, struct.pack(">I", number)),
        Frame(GOAWAY, 0, stream, struct.pack(">II", number, number)),
        Frame(PRIORITY, 0, stream, struct.pack(">IB", stream, 255)),
        Frame(PUSH_PROMISE, END_HEADERS, stream, struct.pack(">I", 2) + literal(headers_of("/"))),
        Frame(CONTINUATION, rng.choice((0, END_HEADERS)), stream, literal([(b"a", b"b")])),
        Frame(HEADERS, rng.choice((0, END_HEADERS)), stream, rng.randbytes(40)),
        Frame(HEADERS, END_HEADERS, stream, b"\x3f" + b"\xff" * 6),  # a dynamic table of some exabytes
        Frame(HEADERS, END_HEADERS | _PADDED, stream, b"\xff" + literal(headers_of("/"))),
        Frame(DATA, rng.choice((0, END_STREAM, _PADDED)), stream, rng.randbytes(rng.choice((0, 1, 5, 300)))),
        Frame(rng.randrange(256), rng.randrange(256), stream, rng.randbytes(20)),
    )
    return rng.choice(kinds)


@dataclass(frozen=True)
class End:
    """How a call on a raw connection ended.

    Attributes:
        code: a status by name; `closed`: the server closed the connection; `reset`: the stream alone; `open`: it had
            said nothing final in time, as it may where a frame or a call is not whole; `refused`: nobody listened.
        text: of the status.
        is_ours: whether the service itself gave that status; else gRPC did, before any of our code saw the call.
    """

    code: str
    text: str = ""
    is_ours: bool = False


async def outcome(port: int, sent: bytes, timeout_s: float) -> End:
    """Sends `sent` on a connection of its own and returns how its call ended."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return End("refused")
    # A million connections closed in order would use up the ports of this machine.
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    try:
        async with asyncio.timeout(timeout_s):
            writer.write(sent)
            return await _end(reader, hpack.Decoder())
    except TimeoutError:
        return End("open")
    except (OSError, asyncio.IncompleteReadError):
        return End("closed")
    finally:
        writer.transport.abort()


async def _end(reader: asyncio.StreamReader, decoder: hpack.Decoder) -> End:
    while True:
        head = await reader.readexactly(_HEADER_BYTES)
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        kind, flags = head[3], head[4]
        if kind == HEADERS:
            found = {bytes(name): bytes(value) for name, value in decoder.decode(payload, raw=True)}
            if b"grpc-status" in found:
                text = found.get(b"grpc-message", b"").decode(errors="replace")
                return End(_CODES[int(found[b"grpc-status"])], text, REASON_METADATA_KEY.encode() in found)
            if flags & END_STREAM:
                return End(f"HTTP {found.get(b':status', b'?').decode()}")
        elif kind == RST_STREAM:
            return End("reset")
        elif kind == GOAWAY:
            return End("closed")
