"""What client and gateway must agree on beside the messages: method paths and limits of a message.

Both sides read the methods from the compiled contract, so a path is never spelled out by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from preceptor.v1 import ledger_pb2, memory_bank_pb2, selection_pb2, weights_pb2

CHUNK_BYTES = 1024 * 1024
"""Bytes of `Chunk.data` that every gateway takes where it named no limit before: in Score, Remember, PushWeights."""

MESSAGE_OVERHEAD_BYTES = 64 * 1024
"""Room for the fields around `Chunk.data` when a message size limit is derived from a chunk size."""

ChunkedT = TypeVar(
    "ChunkedT",
    selection_pb2.SelectRequest,
    selection_pb2.ScoreRequest,
    weights_pb2.PushWeightsRequest,
    memory_bank_pb2.RememberRequest,
)

SERVICES: tuple[ServiceDescriptor, ...] = (
    selection_pb2.DESCRIPTOR.services_by_name["SelectionService"],
    weights_pb2.DESCRIPTOR.services_by_name["WeightsService"],
    ledger_pb2.DESCRIPTOR.services_by_name["LedgerService"],
    memory_bank_pb2.DESCRIPTOR.services_by_name["MemoryBankService"],
)


@dataclass(frozen=True)
class Method:
    """One rpc of the contract."""

    service: str
    name: str
    request: type[Message]
    response: type[Message]
    client_streaming: bool
    server_streaming: bool

    @property
    def path(self) -> str:
        """Path on the wire, e.g. `/preceptor.v1.SelectionService/Select`."""
        return f"/{self.service}/{self.name}"


def _method(service: ServiceDescriptor, method: MethodDescriptor) -> Method:
    return Method(
        service=service.full_name,
        name=method.name,
        request=GetMessageClass(method.input_type),
        response=GetMessageClass(method.output_type),
        client_streaming=method.client_streaming,
        server_streaming=method.server_streaming,
    )


def methods() -> Iterator[Method]:
    """Yields every rpc of the contract."""
    for service in SERVICES:
        for method in service.methods:
            yield _method(service, method)


def with_chunk(request: ChunkedT, offset: int, data: bytes) -> ChunkedT:
    """Returns `request`, empty so far, carrying a chunk. Copies `data` once.

    Passing a finished `Chunk` to the constructor would serialise and parse it: 1.6 ms per megabyte.
    """
    request.chunk.offset = offset
    request.chunk.data = data
    return request
