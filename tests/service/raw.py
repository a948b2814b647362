"""Calls below the client library: any bytes, any order. Used where the client would refuse first."""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from preceptor import batches
from preceptor.errors import REASON_METADATA_KEY
from preceptor.v1 import selection_pb2, weights_pb2
from preceptor.wire import Method, methods

TIMEOUT_S = 20.0
METHODS = {method.name: method for method in methods()}


@dataclass(frozen=True)
class Status:
    """How a call ended."""

    code: str
    reason: str | None
    details: str


class RawCall:
    """One call whose requests are sent one by one: messages, or bytes as they are."""

    def __init__(
        self, channel: grpc.Channel, method: Method, messages: tuple[Message | bytes, ...], timeout_s: float
    ) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.send(*messages)
        requests: Iterator[bytes] = iter(self._requests.get, None)
        self._is_unary = not method.server_streaming
        if method.server_streaming and not method.client_streaming:
            open_call = channel.unary_stream(method.path, _as_it_is, method.response.FromString)
            self._call: Any = open_call(next(requests), timeout=timeout_s)
        elif method.server_streaming:
            open_call = channel.stream_stream(method.path, _as_it_is, method.response.FromString)
            self._call = open_call(requests, timeout=timeout_s)
        elif method.client_streaming:
            open_call = channel.stream_unary(method.path, _as_it_is, method.response.FromString)
            self._call = open_call.future(requests, timeout=timeout_s)
        else:
            open_call = channel.unary_unary(method.path, _as_it_is, method.response.FromString)
            self._call = open_call.future(next(requests), timeout=timeout_s)

    def send(self, *messages: Message | bytes) -> None:
        for message in messages:
            self._requests.put(message if isinstance(message, bytes) else message.SerializeToString())

    def half_close(self) -> None:
        self._requests.put(None)

    def cancel(self) -> None:
        self._requests.put(None)
        self._call.cancel()

    def receive(self) -> Any:
        """The next message of a stream, or the one answer; fails the test where the call ended in an error."""
        return self._call.result(TIMEOUT_S) if self._is_unary else next(self._call)

    def responses(self) -> Iterator[Any]:
        """Yields the messages of a stream until the call ends, whatever way."""
        with suppress(grpc.RpcError):
            yield from self._call

    def answer(self) -> selection_pb2.SelectResponse:
        """The next Selection or Failure of a Select stream."""
        while True:
            response: selection_pb2.SelectResponse = self.receive()
            if response.WhichOneof("kind") in ("selection", "failure"):
                return response

    def status(self) -> Status:
        """Waits for the end of the call."""
        try:
            if self._is_unary:
                self._call.result(TIMEOUT_S)
            else:
                for _ in self._call:
                    pass
        except grpc.RpcError:
            pass
        finally:
            self._requests.put(None)
        trailing = dict(self._call.trailing_metadata() or ())
        return Status(self._call.code().name, trailing.get(REASON_METADATA_KEY), self._call.details())


class RawChannel:
    """A connection of its own to one gateway; a context manager. `options` are further ones of gRPC."""

    def __init__(self, target: str, timeout_s: float = TIMEOUT_S, options: Sequence[tuple[str, int]] = ()) -> None:
        self._timeout_s = timeout_s
        ours = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        self.grpc = grpc.insecure_channel(target, options=[*ours, *options])

    def call(self, name: str, *messages: Message | bytes) -> RawCall:
        """Starts a call and sends `messages`; a call with one request needs exactly that one."""
        return RawCall(self.grpc, METHODS[name], messages, self._timeout_s)

    def __enter__(self) -> RawChannel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.grpc.close()


def _as_it_is(data: bytes) -> bytes:
    return data


def select_open(run_id: str, observed: int | None = None) -> selection_pb2.SelectRequest:
    return selection_pb2.SelectRequest(open=selection_pb2.SelectOpen(run_id=run_id, observed_learner_version=observed))


def header(body: bytes, **fields: Any) -> selection_pb2.SelectRequest:
    """A SuperBatchHeader for `body`; `fields` override its fields."""
    defaults: dict[str, Any] = {
        "step": 1,
        "sub_batch_size": 1,
        "row_count": 8,
        "body_bytes": len(body),
        "digest": hashlib.sha256(body).digest(),
    }
    return selection_pb2.SelectRequest(super_batch=selection_pb2.SuperBatchHeader(**{**defaults, **fields}))


def chunk(data: bytes, offset: int = 0) -> selection_pb2.SelectRequest:
    return selection_pb2.SelectRequest(chunk=selection_pb2.Chunk(offset=offset, data=data))


def super_batch(batch: dict[str, Any], **fields: Any) -> list[selection_pb2.SelectRequest]:
    """Header and one chunk of `batch`."""
    encoded = batches.encode(batch)
    body = bytes(encoded.body)
    return [header(body, **{"row_count": encoded.row_count, "digest": encoded.digest, **fields}), chunk(body)]


def push_messages(
    data: bytes, *, total_bytes: int | None = None, sha256: bytes | None = None, **header_fields: Any
) -> list[weights_pb2.PushWeightsRequest]:
    """A push of the file `data`: PushHeader, one Chunk, PushCommit."""
    header_fields = {"role": weights_pb2.WEIGHTS_ROLE_LEARNER, **header_fields}
    total = len(data) if total_bytes is None else total_bytes
    digest = hashlib.sha256(data).digest() if sha256 is None else sha256
    return [
        weights_pb2.PushWeightsRequest(header=weights_pb2.PushHeader(total_bytes=total, **header_fields)),
        weights_pb2.PushWeightsRequest(chunk=selection_pb2.Chunk(offset=0, data=data)),
        weights_pb2.PushWeightsRequest(commit=weights_pb2.PushCommit(sha256=digest)),
    ]
