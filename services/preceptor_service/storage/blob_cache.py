"""`BlobCache`: weights from an object store as files on this machine, bounded in bytes. Called by `ObjectStorage`."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from preceptor.errors import DiskFullError
from preceptor_service.failpoints import reached
from preceptor_service.storage.directory import remove_if_older
from preceptor_service.storage.storage import damaged

_JUST_USED_S = 60.0
"""A file used so lately stays, whatever the bound: somebody may be about to open it."""

_ABANDONED_S = 3600.0
"""A file in `staging` that nothing was written to for so long is nobody's: its process died."""

_LOCK_TIMEOUT_S = 600.0
_LOCK_POLL_S = 0.05


class BlobCache:
    """Files named by their SHA-256, shared by all processes of a machine. Blocking, safe for several threads.

    A file appears whole and with the right checksum, or not at all. Of several that want the same weights at once,
    one fetches them.

    Args:
        directory: made where it is missing.
        max_bytes: what stays; least recently used out.

    Raises:
        OSError: the directory cannot be made.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._blobs = directory / "blobs"
        self._locks = directory / "locks"
        self.staging = directory / "staging"
        for made in (self._blobs, self._locks, self.staging):
            made.mkdir(parents=True, exist_ok=True)

    def held(self, digest: str) -> Path | None:
        """Returns the file with that digest, marked as used, or None."""
        file = self._file(digest)
        try:
            os.utime(file)
        except FileNotFoundError:
            return None
        return file

    def fetch(self, digest: str, parts: Iterable[bytes]) -> Path:
        """Returns the file with that digest; written from `parts`, where another did not just do it.

        Raises:
            InternalError: the parts have another checksum.
            DiskFullError: there is no room on the disk.
        """
        with self._lock(digest):
            file = self.held(digest) or self._write(digest, parts)
        self._evict(file)
        return file

    def keep(self, file: Path, digest: str) -> None:
        """Takes in a file of `staging` by a hard link, with that digest."""
        link = self.staging / f"{uuid.uuid4().hex}.blob"
        os.link(file, link)
        os.utime(link)
        link.replace(self._file(digest))
        self._evict(self._file(digest))

    def discard(self, digest: str) -> None:
        """Removes the file with that digest."""
        self._file(digest).unlink(missing_ok=True)

    def _write(self, digest: str, parts: Iterable[bytes]) -> Path:
        partial = self.staging / f"{uuid.uuid4().hex}.part"
        found = hashlib.sha256()
        try:
            with partial.open("xb") as file:
                for part in parts:
                    file.write(part)
                    found.update(part)
            if digest != f"sha256:{found.hexdigest()}":
                raise damaged(digest, found.hexdigest())
            return partial.replace(self._file(digest))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DiskFullError(
                f"no room for weights {digest} in {self._blobs.parent}: {error.strerror}; "
                "give weights.cache_path more space, or lower weights.cache_bytes"
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Removes what was left behind in `staging`; every fetch does too."""
        for leftover in self.staging.iterdir():
            if remove_if_older(leftover, time.time() - _ABANDONED_S):
                reached("leftover-removed")

    def _evict(self, newest: Path) -> None:
        self.sweep()
        found = []
        for file in self._blobs.iterdir():
            with suppress(FileNotFoundError):  # another process was faster
                status = file.stat()
                found.append((status.st_mtime, status.st_size, file))
        held = sum(size for _, size, _ in found)
        for used_s, size, file in sorted(found):
            if held <= self._max_bytes or used_s > time.time() - _JUST_USED_S:
                return
            if file != newest:
                file.unlink(missing_ok=True)
                held -= size

    @contextmanager
    def _lock(self, digest: str) -> Iterator[None]:
        """Holds off other threads and processes that want the same weights; no longer than a fetch may take."""
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        with (self._locks / self._file(digest).name[:2]).open("wb") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        break  # fetched twice rather than never
                    time.sleep(_LOCK_POLL_S)
                else:
                    break
            yield

    def _file(self, digest: str) -> Path:
        return self._blobs / digest.removeprefix("sha256:")
