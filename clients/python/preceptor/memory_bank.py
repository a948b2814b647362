"""Putting super-batches into a run's memory bank, and sampling sub-batches from it. Called by `client.py`."""

from __future__ import annotations

import time
from collections.abc import Iterator

from preceptor.answers import Remembered, Sampled
from preceptor.batches import EncodedBatch
from preceptor.channel import Connection, backoff_s
from preceptor.decoding import remembered_from_proto, sampled_from_proto
from preceptor.errors import BankShortError
from preceptor.v1 import memory_bank_pb2
from preceptor.wire import CHUNK_BYTES, with_chunk


def remember(
    connection: Connection, header: memory_bank_pb2.RememberHeader, encoded: EncodedBatch, timeout_s: float
) -> Remembered:
    """Sends one super-batch and returns once it is in the bank, durably. Repeated while the service is unavailable.

    Raises:
        PreceptorError: as `Run.remember` says.
    """
    header.row_count, header.body_bytes, header.digest = encoded.row_count, len(encoded.body), encoded.digest
    answer = connection.repeated_unary(
        "Remember",
        lambda: _requests(header, encoded.body),
        memory_bank_pb2.RememberResponse,
        timeout_s,
        f"the super-batch of step {header.step} was not put into the bank of run {header.run_id!r}",
    )
    return remembered_from_proto(answer)


def sample(
    connection: Connection, request: memory_bank_pb2.SampleBankRequest, wait_s: float, timeout_s: float
) -> Sampled:
    """Samples one sub-batch. Repeated while the service is unavailable, and for `wait_s` while the bank holds too few.

    Raises:
        PreceptorError: as `Run.sample` says.
    """
    until, refusals = time.monotonic() + wait_s, 0
    while True:
        try:
            answer = connection.repeated_unary(
                "SampleBank",
                lambda: request,
                memory_bank_pb2.SampleBankResponse,
                timeout_s,
                f"the sub-batch of step {request.step} was not sampled from the bank of run {request.run_id!r}",
            )
            return sampled_from_proto(request.step, request.rank, answer)
        except BankShortError:
            refusals += 1
            if time.monotonic() >= until:
                raise
        time.sleep(max(0.0, min(backoff_s(refusals), until - time.monotonic())))


def _requests(header: memory_bank_pb2.RememberHeader, body: memoryview) -> Iterator[memory_bank_pb2.RememberRequest]:
    yield memory_bank_pb2.RememberRequest(header=header)
    for offset in range(0, len(body), CHUNK_BYTES):
        data = bytes(body[offset : offset + CHUNK_BYTES])
        yield with_chunk(memory_bank_pb2.RememberRequest(), offset, data)
