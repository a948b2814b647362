"""One valid call of each rpc of the contract, with any credentials."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message
from safetensors.torch import save

from preceptor import batches
from preceptor.errors import REASON_METADATA_KEY
from preceptor.runs import MemoryBank, spec_to_proto
from preceptor.v1 import ledger_pb2, memory_bank_pb2, selection_pb2, weights_pb2
from tests.access.certificates import Pair
from tests.service import digits
from tests.service.raw import METHODS, push_messages, select_open, super_batch

TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Answer:
    """How a call ended, and all that it answered."""

    code: str
    reason: str | None
    details: str
    messages: list[Any]


@contextmanager
def channel(target: str, ca: bytes | None = None, pair: Pair | None = None) -> Iterator[grpc.Channel]:
    """A connection of its own; TLS where `ca` is given."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    if ca is None:
        opened = grpc.insecure_channel(target, options)
    else:
        key, certificate = (None, None) if pair is None else (pair.private_key, pair.certificate)
        opened = grpc.secure_channel(target, grpc.ssl_channel_credentials(ca, key, certificate), options)
    with opened:
        yield opened


def bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    return () if token is None else (("authorization", f"Bearer {token}"),)


def answer(
    opened: grpc.Channel, name: str, run_id: str, metadata: tuple[tuple[str, str], ...] = (), **changes: Any
) -> Answer:
    """Calls `name` for `run_id` as a trainer would, and waits for its end."""
    method = METHODS[name]
    requests = REQUESTS[name](run_id, **changes)
    stub = {
        (False, False): opened.unary_unary,
        (True, False): opened.stream_unary,
        (False, True): opened.unary_stream,
        (True, True): opened.stream_stream,
    }[method.client_streaming, method.server_streaming](
        method.path, method.request.SerializeToString, method.response.FromString
    )
    messages: list[Any] = []
    try:
        request = iter(requests) if method.client_streaming else requests[0]
        if method.server_streaming:
            call = stub(request, timeout=TIMEOUT_S, metadata=metadata)
            messages.extend(call)
        else:
            response, call = stub.with_call(request, timeout=TIMEOUT_S, metadata=metadata)
            messages.append(response)
    except grpc.RpcError as error:
        call = error
    trailing = dict(call.trailing_metadata() or ())
    return Answer(call.code().name, trailing.get(REASON_METADATA_KEY), call.details(), messages)


def _create(run_id: str, **changes: Any) -> list[Message]:
    spec = digits.spec(run_id, **{"score": "uniform", "ledger": True, "memory_bank": MemoryBank(1000, None), **changes})
    return [selection_pb2.CreateRunRequest(spec=spec_to_proto(spec))]


def _score(run_id: str) -> list[Message]:
    header, chunk = super_batch(digits.candidates(1))
    announced = selection_pb2.ScoreHeader(
        run_id=run_id, row_count=header.super_batch.row_count, body_bytes=header.super_batch.body_bytes
    )
    return [selection_pb2.ScoreRequest(header=announced), selection_pb2.ScoreRequest(chunk=chunk.chunk)]


def _remember(run_id: str) -> list[Message]:
    encoded = batches.encode(digits.candidates(1), range(32))
    body = bytes(encoded.body)
    header = memory_bank_pb2.RememberHeader(
        run_id=run_id, step=1, row_count=32, body_bytes=len(body), digest=encoded.digest
    )
    return [
        memory_bank_pb2.RememberRequest(header=header),
        memory_bank_pb2.RememberRequest(chunk=selection_pb2.Chunk(offset=0, data=body)),
    ]


REQUESTS: dict[str, Callable[..., list[Message]]] = {
    "CreateRun": _create,
    "GetRun": lambda run_id: [selection_pb2.GetRunRequest(run_id=run_id)],
    "ListRuns": lambda run_id: [selection_pb2.ListRunsRequest()],
    "DeleteRun": lambda run_id: [selection_pb2.DeleteRunRequest(run_id=run_id)],
    "Select": lambda run_id: [select_open(run_id), *super_batch(digits.candidates(1))],
    "Score": _score,
    "ReportMetrics": lambda run_id: [selection_pb2.ReportMetricsRequest(run_id=run_id, step=1, values={"loss": 1.5})],
    "ListMetrics": lambda run_id: [selection_pb2.ListMetricsRequest(run_id=run_id)],
    "PushWeights": lambda run_id, seed=1: list(push_messages(save(digits.weights(seed)), run_id=run_id, step=1)),
    "ReadLedger": lambda run_id: [ledger_pb2.ReadLedgerRequest(run_id=run_id)],
    "Remember": _remember,
    "SampleBank": lambda run_id: [memory_bank_pb2.SampleBankRequest(run_id=run_id, step=1, sub_batch_size=4)],
    "GetWeights": lambda run_id: [weights_pb2.GetWeightsRequest(run_id=run_id)],
}
