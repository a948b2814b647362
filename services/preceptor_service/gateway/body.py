"""Bodies that arrive in chunks: assembled in order, bounded before anything is allocated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from preceptor.errors import InvalidMessageError, InvalidSuperBatchError, TooLargeError, UnavailableError
from preceptor.v1 import selection_pb2
from preceptor_service.config import GatewayConfig

RequestT = TypeVar("RequestT")


def check_body_bytes(body_bytes: int, config: GatewayConfig) -> None:
    """Checks the announced size of a super-batch before anything is allocated.

    Raises:
        TooLargeError: it is above the limit.
        InvalidMessageError: it is negative.
    """
    limit = config.max_super_batch_bytes
    if body_bytes > limit:
        raise TooLargeError(f"a super-batch has {body_bytes} bytes, the limit is {limit}; send fewer rows")
    if body_bytes < 0:
        raise InvalidMessageError(f"body_bytes is {body_bytes}; it cannot be negative")


def check_rows(row_count: int, body_bytes: int, config: GatewayConfig) -> None:
    """Checks the announced number of candidates.

    Raises:
        InvalidSuperBatchError: there are none, or more than the limit.
    """
    limit = config.max_super_batch_rows
    if row_count < 1 or body_bytes == 0:
        raise InvalidSuperBatchError(
            f"the super-batch is empty: {row_count} rows in {body_bytes} bytes; offer at least one candidate"
        )
    if row_count > limit:
        raise InvalidSuperBatchError(f"the super-batch has {row_count} rows, the limit is {limit}; send fewer")


class ChunkOrder:
    """Checks that chunks cover `total_bytes` without gap or overlap."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.received_bytes = 0

    @property
    def is_complete(self) -> bool:
        """Whether every byte has arrived."""
        return self.received_bytes == self.total_bytes

    def accept(self, chunk: selection_pb2.Chunk) -> bytes:
        """Counts `chunk` and returns its bytes.

        Raises:
            InvalidMessageError: it is empty, not the next one, or more than was announced.
        """
        data = chunk.data  # each look at a bytes field copies it
        if not data:
            raise InvalidMessageError(f"the chunk at offset {chunk.offset} is empty; send at least one byte")
        if chunk.offset != self.received_bytes:
            raise InvalidMessageError(
                f"a chunk has offset {chunk.offset}, {self.received_bytes} was next; send chunks in order"
            )
        if chunk.offset + len(data) > self.total_bytes:
            raise InvalidMessageError(
                f"the chunk at offset {chunk.offset} ends at {chunk.offset + len(data)}, "
                f"{self.total_bytes} bytes were announced"
            )
        self.received_bytes += len(data)
        return data


class Body:
    """One super-batch's bytes on their way in: uint8 `[total_bytes]`, filled chunk by chunk; or, refused, dropped."""

    def __init__(self, total_bytes: int, is_kept: bool = True) -> None:
        self._is_kept = is_kept
        self._order = ChunkOrder(total_bytes)
        self._bytes: NDArray[np.uint8] | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every byte has arrived."""
        return self._order.is_complete

    def accept(self, chunk: selection_pb2.Chunk) -> int:
        """Puts `chunk` to its place and returns its size; raises `InvalidMessageError` as `ChunkOrder.accept`."""
        start = self._order.received_bytes
        data = np.frombuffer(self._order.accept(chunk), np.uint8)
        if not self._is_kept:
            return len(data)
        if len(data) == self._order.total_bytes:
            self._bytes = data
            return len(data)
        if self._bytes is None:
            self._bytes = np.empty(self._order.total_bytes, np.uint8)
        self._bytes[start : start + len(data)] = data
        return len(data)

    def read(self) -> NDArray[np.uint8]:
        """Returns the bytes, read-only."""
        if self._bytes is None:
            return np.empty(0, np.uint8)
        self._bytes.flags.writeable = False
        return self._bytes


async def next_message(requests: AsyncIterator[RequestT], silence_s: float) -> RequestT:
    """Returns the next message of a stream that is in the middle of something.

    Raises:
        InvalidMessageError: the stream ended.
        UnavailableError: nothing came within `silence_s`; to be repeated, for the sender cannot help it.
    """
    try:
        async with asyncio.timeout(silence_s):
            return await anext(requests)
    except StopAsyncIteration:
        raise InvalidMessageError("the stream ended too early; send every message that the contract asks for") from None
    except TimeoutError:
        raise UnavailableError(
            f"nothing came for {silence_s:g} s in the middle of a call; connect again and repeat it"
        ) from None
