"""Malformed calls over a socket, many at once, and how each of them ended."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import grpc
from google.protobuf.message import Message

from preceptor.errors import REASON_METADATA_KEY
from preceptor.v1 import selection_pb2
from preceptor.wire import Method
from tests.access.calls import REQUESTS
from tests.reliability import http2
from tests.reliability.bodies import ROWS, arrow_case, weights_case, weights_file
from tests.reliability.decoders import shows_internals
from tests.reliability.mutation import mutated_conversation
from tests.service import digits
from tests.service.raw import METHODS, chunk, header, push_messages, select_open, super_batch

RUN_ID = "fuzzed"
"""A run with both weights; what is done to runs by name is done to others."""

OTHER_RUN_ID = "fuzzed-too"
_ANSWER_S = 30.0
_HTTP2_S = 0.3
TRY_AGAIN = "UNAVAILABLE by the service"
_TRIES = 50
_UNHEARD = "Internal error from Core"
"""What grpc.aio says in place of a status where a call ended while it was still writing: nothing of the service's."""

Ended = tuple[str, bool]
"""A status code, or what `http2.End` says in its place; whether its text shows internals."""


class Surfaces:
    """The surfaces of one service over sockets: from the generator of a case to how it ended. For one event loop."""

    def __init__(self, port: int) -> None:
        self._port = port
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
        self._strangers = [message for make in REQUESTS.values() for message in make(OTHER_RUN_ID)]
        self._conversations = [_select(), _select(rows=3, split=100)]
        self._file = weights_file()
        self._calls = [
            (METHODS[name].path, [message.SerializeToString() for message in make(OTHER_RUN_ID)])
            for name, make in REQUESTS.items()
        ]
        self.surfaces: dict[str, Callable[[random.Random], Any]] = {
            "select-frames": self._select,
            "arrow": self._arrow,
            "safetensors": self._weights,
            "push-order": self._push,
            "other-requests": self._other,
            "http2": self._raw,
        }

    async def close(self) -> None:
        await self._channel.close()

    async def _select(self, rng: random.Random) -> list[Ended]:
        conversation = mutated_conversation(rng, rng.choice(self._conversations), self._strangers)
        return await self._call(METHODS["Select"], conversation)

    async def _arrow(self, rng: random.Random) -> list[Ended]:
        body, _, rows = arrow_case(rng)
        announced = header(body, step=rng.getrandbits(60), row_count=rows)
        sent: Sequence[Message] = [select_open(RUN_ID), announced, *([chunk(body)] if body else [])]
        return await self._call(METHODS["Select"], [message.SerializeToString() for message in sent])

    async def _weights(self, rng: random.Random) -> list[Ended]:
        content = weights_case(rng)
        messages = push_messages(content, run_id=RUN_ID, step=2**40)
        return await self._call(METHODS["PushWeights"], [message.SerializeToString() for message in messages])

    async def _push(self, rng: random.Random) -> list[Ended]:
        whole = push_messages(self._file, run_id=RUN_ID, step=2**40)
        half = len(self._file) // 2
        pieces = [
            whole[1].__class__(chunk=selection_pb2.Chunk(offset=at, data=data))
            for at, data in ((0, self._file[:half]), (half, self._file[half:]))
        ]
        messages = rng.choice((whole, [whole[0], *pieces, whole[2]]))
        return await self._call(METHODS["PushWeights"], mutated_conversation(rng, messages, self._strangers))

    async def _other(self, rng: random.Random) -> list[Ended]:
        name = rng.choice(list(REQUESTS))
        messages = REQUESTS[name](OTHER_RUN_ID)
        sent = mutated_conversation(rng, messages, self._strangers) if rng.random() < 0.9 else messages
        data = [message if isinstance(message, bytes) else message.SerializeToString() for message in sent]
        return await self._call(METHODS[name], data)

    async def _raw(self, rng: random.Random) -> list[Ended]:
        end = await http2.outcome(self._port, http2.case(rng, self._calls), _HTTP2_S)
        # gRPC answers broken HTTP/2 with INTERNAL by itself, as its specification says; none of our code saw it.
        code = "INTERNAL of gRPC" if end.code == "INTERNAL" and not end.is_ours else end.code
        return [(code, end.is_ours and shows_internals(end.text))]

    async def _call(self, method: Method, sent: Sequence[bytes]) -> list[Ended]:
        """Sends `sent` as it is, and returns every Failure and the end that the service gave it."""
        for _ in range(_TRIES):
            ended = await self._tried(method, sent)
            if ended is not None:
                return ended
        return [("never heard", False)]

    async def _tried(self, method: Method, sent: Sequence[bytes]) -> list[Ended] | None:
        ended: list[Ended] = []
        if method.client_streaming:
            start = self._channel.stream_stream if method.server_streaming else self._channel.stream_unary
            call = start(method.path)(_each(sent), timeout=_ANSWER_S)
        else:
            start = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
            call = start(method.path)(sent[0] if sent else b"", timeout=_ANSWER_S)
        try:
            if not method.server_streaming:
                await call
            else:
                async for data in call:
                    ended += _failures(method, data)
        except grpc.RpcError:
            pass
        code, details = await call.code(), await call.details()
        if details == _UNHEARD:
            return None
        is_ours = REASON_METADATA_KEY in dict(await call.trailing_metadata() or ())
        return [*ended, (_named(code.name, is_ours), shows_internals(details or ""))]


async def _each(sent: Iterable[bytes]) -> AsyncIterator[bytes]:
    for message in sent:
        yield message


def _failures(method: Method, data: bytes) -> list[Ended]:
    answer = method.response.FromString(data)
    if not isinstance(answer, selection_pb2.SelectResponse) or answer.WhichOneof("kind") != "failure":
        return []
    return [(_named(answer.failure.code, is_ours=True), shows_internals(answer.failure.message))]


def _named(code: str, is_ours: bool) -> str:
    """`code`, where a lost connection cannot be taken for the service's own "try again"."""
    return TRY_AGAIN if code == "UNAVAILABLE" and is_ours else code


def _select(rows: int = ROWS, split: int | None = None) -> list[selection_pb2.SelectRequest]:
    """A valid stream of two super-batches; with `split`, in chunks of so many bytes."""
    sent = [select_open(RUN_ID)]
    for step in (1, 2):
        announced, whole = super_batch(digits.candidates(step, rows), step=step)
        body = whole.chunk.data
        size = split or len(body)
        sent += [announced, *(chunk(body[at : at + size], at) for at in range(0, len(body), size))]
    return sent
