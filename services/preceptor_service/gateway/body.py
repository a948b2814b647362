"""Bodies that arrive in chunks: assembled in order, bounded before anything is allocated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from preceptor.errors import InvalidMessageError
from preceptor.v1 import selection_pb2


class ChunkOrder:
    """Checks that chunks cover `total_bytes` without gap or overlap."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.received_bytes = 0

    @property
    def is_complete(self) -> bool:
        """Whether every byte has arrived."""
        return self.received_bytes == self.total_bytes

    def accept(self, chunk: selection_pb2.Chunk) -> None:
        """Counts `chunk`.

        Raises:
            InvalidMessageError: it is empty, not the next one, or more than was announced.
        """
        if not chunk.data:
            raise InvalidMessageError(f"the chunk at offset {chunk.offset} is empty; send at least one byte")
        if chunk.offset != self.received_bytes:
            raise InvalidMessageError(
                f"a chunk has offset {chunk.offset}, {self.received_bytes} was next; send chunks in order"
            )
        if chunk.offset + len(chunk.data) > self.total_bytes:
            raise InvalidMessageError(
                f"the chunk at offset {chunk.offset} ends at {chunk.offset + len(chunk.data)}, "
                f"{self.total_bytes} bytes were announced"
            )
        self.received_bytes += len(chunk.data)


class Body:
    """One super-batch's bytes on their way in: uint8 `[total_bytes]`, filled chunk by chunk."""

    def __init__(self, total_bytes: int) -> None:
        self._order = ChunkOrder(total_bytes)
        self._bytes: NDArray[np.uint8] = np.empty(total_bytes, np.uint8)

    @property
    def is_complete(self) -> bool:
        """Whether every byte has arrived."""
        return self._order.is_complete

    def accept(self, chunk: selection_pb2.Chunk) -> None:
        """Copies `chunk` to its place; raises `InvalidMessageError` as `ChunkOrder.accept`."""
        self._order.accept(chunk)
        self._bytes[chunk.offset : self._order.received_bytes] = np.frombuffer(chunk.data, np.uint8)

    def read(self) -> NDArray[np.uint8]:
        """Returns the bytes, read-only."""
        self._bytes.flags.writeable = False
        return self._bytes
