"""`Staged`: weights on their way into the store, not visible to anybody yet; and what makes files durable."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from preceptor.errors import DiskFullError, InvalidWeightsError
from preceptor_service.failpoints import reached


class Staged:
    """A safetensors file on its way in; a context manager that removes what was not committed.

    For one thread. Holds one open file and no data in memory.
    """

    def __init__(self, path: Path, total_bytes: int) -> None:
        self.path = path
        self.total_bytes = total_bytes
        self.written_bytes = 0
        self.digest: str | None = None
        self._sha256 = hashlib.sha256()
        self._file = path.open("xb")
        reached("upload-opened")

    def write(self, data: bytes) -> None:
        """Appends `data`.

        Raises:
            InvalidWeightsError: more bytes than announced.
            DiskFullError: the disk is full.
        """
        if self.written_bytes + len(data) > self.total_bytes:
            raise InvalidWeightsError(
                f"weights have at least {self.written_bytes + len(data)} bytes, announced were {self.total_bytes}; "
                "announce the size of the safetensors file"
            )
        with disk_errors():
            self._file.write(data)
        self._sha256.update(data)
        self.written_bytes += len(data)
        reached("upload-written")

    def seal(self, sha256: bytes) -> None:
        """Makes the file durable, once it is known to be what the sender meant.

        Raises:
            InvalidWeightsError: fewer bytes than announced, or another checksum.
            DiskFullError: the disk is full.
        """
        if self.written_bytes != self.total_bytes:
            raise InvalidWeightsError(
                f"weights are truncated: {self.written_bytes} bytes came, announced were {self.total_bytes}; push again"
            )
        if self._sha256.digest() != sha256:
            raise InvalidWeightsError(
                f"weights have the SHA-256 {self._sha256.hexdigest()}, announced was {sha256.hex()}; push again"
            )
        with disk_errors():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        reached("upload-synced")
        self.digest = f"sha256:{self._sha256.hexdigest()}"

    def close(self) -> None:
        """Removes the file; what was committed stays in the store. Safe to repeat."""
        with suppress(OSError):  # buffered bytes that a full disk does not take, of a file that goes away anyway
            self._file.close()
        self.path.unlink(missing_ok=True)
        reached("upload-removed")

    def __enter__(self) -> Staged:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def sync_directory(directory: Path) -> None:
    """Makes the names in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Makes a directory with all its parents, durably, where it is missing."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_directory(made.parent)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turns a full disk or quota into `DiskFullError`; every other `OSError` passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(f"the store cannot write: {error.strerror}; free space or delete runs") from error
