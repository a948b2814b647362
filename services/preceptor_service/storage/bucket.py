"""`Bucket`: the objects below one `s3://` URI. The only module that knows fsspec.

Endpoint, region and credentials come from the environment, as for every S3 client: `AWS_ENDPOINT_URL_S3`,
`AWS_REGION`, `AWS_ACCESS_KEY_ID`, a role of the machine or of the service account.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from preceptor.errors import DiskFullError, UnavailableError
from preceptor_service.config import ConfigError

PART_BYTES = 16 * 1024 * 1024
"""What is sent or fetched in one request of a large object."""

_CALL_TIMEOUT_S = 8.0
_LISTING_TIMEOUT_S = 60.0
_TRANSFER_TIMEOUT_S = 60.0
_SLOWEST_BYTES_PER_S = 2 * 1024 * 1024
_CONNECT_TIMEOUT_S = 3.0
_READ_TIMEOUT_S = 20.0
_SENDERS = 4
_TRIES = 3

_SILENT_S = 30.0
"""How long the same complaint is not logged again."""

_FIRST_PAUSE_S = 2.0
_LONGEST_PAUSE_S = 30.0
"""After a call that got no answer the next ones fail at once for so long, twice as long each time: every thread of
the gateway would wait otherwise."""

_EXISTS = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict", "OperationAborted", "409"})
_FULL = frozenset({"QuotaExceeded", "InsufficientCapacity", "InsufficientStorage", "XMinioStorageFull", "507"})
_EMPTY = frozenset({"InvalidRange", "416"})
_NO_BUCKET = "NoSuchBucket"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ObjectInfo:
    """One object.

    Attributes:
        total_bytes: its size.
        modified_s: when it was written last, by the clock of the object store.
        tag: changes with the content.
    """

    total_bytes: int
    modified_s: float
    tag: str


class Bucket:
    """Objects by key, relative to `uri`. Blocking, safe for several threads.

    Every call ends within a bounded time, most within eight seconds. Each raises `FileNotFoundError` where
    the object is missing, `DiskFullError` where the store takes no more, and `UnavailableError` for all else that
    goes wrong there. What the object store said is the cause of the error and in the log; its text, which may reach
    any caller, says nothing of it.

    Args:
        uri: `s3://bucket/prefix`.
        call_timeout_s: longest wait for a call that moves no weights.

    Raises:
        ConfigError: s3fs is not installed.
    """

    def __init__(self, uri: str, call_timeout_s: float = _CALL_TIMEOUT_S) -> None:
        try:
            self._objects = _client(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))
        except ImportError as error:
            raise ConfigError(
                f"weights.path is {uri}, which needs s3fs; install it with pip install 'preceptor[s3]'"
            ) from error
        self._uri = uri
        self._root = uri.removeprefix("s3://")
        self._call_timeout_s = call_timeout_s
        self._pause_s = _FIRST_PAUSE_S
        self._refused_until = -math.inf
        self._logged = ""
        self._silent_until = -math.inf

    def read(self, key: str) -> bytes:
        """Returns a small object."""
        # A range, because s3fs asks for the size first where it is to read all.
        content: bytes = self._call(self._objects.cat_file, self._path(key), start=0)
        return content

    def read_part(self, key: str, start: int, stop: int) -> bytes:
        """Returns the bytes from `start` to before `stop`."""
        part: bytes = self._call(
            self._objects.cat_file, self._path(key), start=start, end=stop, timeout_s=_TRANSFER_TIMEOUT_S
        )
        return part

    def write(self, key: str, content: bytes) -> None:
        """Writes a small object, in place of the one that may be there."""
        self._call(self._objects.pipe_file, self._path(key), content)

    def create(self, key: str, content: bytes) -> bool:
        """Writes a small object; False where there is one with other content.

        That content tells also whether a refusal is only the answer to this call's own repeated request.
        """
        for _ in range(_TRIES):
            try:
                self._call(self._objects.pipe_file, self._path(key), content, mode="create")
            except FileExistsError:
                try:
                    return self.read(key) == content
                except FileNotFoundError:
                    continue  # removed since, or a creation that met ours and failed too
            return True
        self._log(f"it creates {key} neither for us nor for others")
        raise UnavailableError(
            "the object store creates nothing of that name, neither for us nor for others; try again"
        )

    def info(self, key: str) -> ObjectInfo:
        """Returns what is known of an object without reading it."""
        found = self._call(self._objects.info, self._path(key))
        if found["type"] != "file":
            raise FileNotFoundError(key)
        return _info(found)

    def list(self, folder: str) -> dict[str, ObjectInfo]:
        """Returns every object below `folder/`, at any depth, by key, in the order of the keys."""
        found = self._call(
            self._objects.find, self._root, prefix=f"{folder}/", detail=True, timeout_s=_LISTING_TIMEOUT_S
        )
        return {path.removeprefix(f"{self._root}/"): _info(one) for path, one in sorted(found.items())}

    def copy(self, key: str, to: str) -> None:
        """Copies an object inside the store."""
        self._call(self._objects.cp_file, self._path(key), self._path(to), timeout_s=_TRANSFER_TIMEOUT_S)

    def touch(self, key: str) -> None:
        """Makes an object young."""
        # S3 refuses to copy an object onto itself unless something about it changes.
        path = self._path(key)
        self._call(self._objects.cp_file, path, path, MetadataDirective="REPLACE", timeout_s=_TRANSFER_TIMEOUT_S)

    def remove(self, key: str) -> None:
        """Removes an object; one that is not there is no error."""
        self._call(self._objects.rm_file, self._path(key))

    def upload(self, file: Path, key: str) -> None:
        """Sends a file; it appears whole, in place of the object that may be there. Holds a few parts in memory."""
        timeout_s = _TRANSFER_TIMEOUT_S + file.stat().st_size / _SLOWEST_BYTES_PER_S
        self._call(self._objects.put_file, str(file), self._path(key), chunksize=PART_BYTES, timeout_s=timeout_s)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _call(
        self, function: Callable[..., Any], *arguments: object, timeout_s: float | None = None, **options: object
    ) -> Any:
        if time.monotonic() < self._refused_until:
            raise UnavailableError("the object store did not answer just now; try again in a few seconds")
        try:
            answer = function(*arguments, timeout=timeout_s or self._call_timeout_s, **options)
        except Exception as error:
            code = _code(error)
            if code in _EMPTY:
                return b""
            if isinstance(error, FileExistsError) or code in _EXISTS:
                raise FileExistsError(str(error)) from error
            if isinstance(error, FileNotFoundError) and code != _NO_BUCKET:
                raise
            if code in _FULL:
                self._log(error)
                raise DiskFullError("the object store takes no more; delete runs") from error
            if timeout_s is None and code is None and not _is_answer(error):
                self._pause()
            self._log(error)
            raise UnavailableError(
                "the object store cannot be used; try again, and if it stays so, the service's log says why"
            ) from error
        self._pause_s = _FIRST_PAUSE_S
        return answer

    def _log(self, said: object) -> None:
        """Logs what the object store said; the same again at most every 30 s."""
        text, now = str(said) or type(said).__name__, time.monotonic()
        if text == self._logged and now < self._silent_until:
            return
        self._logged, self._silent_until = text, now + _SILENT_S
        logger.warning(
            "the object store %s failed: %s; see whether it is up and what these credentials may do", self._uri, text
        )

    def _pause(self) -> None:
        now = time.monotonic()
        if now >= self._refused_until:  # else another thread's call ended a moment ago
            self._refused_until = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)


@lru_cache(maxsize=4)
def _client(endpoint: str | None) -> Any:
    """Returns the one client of this process; making one takes most of a second."""
    from s3fs import S3FileSystem

    client = S3FileSystem(
        endpoint_url=endpoint,
        skip_instance_cache=True,
        use_listings_cache=False,
        max_concurrency=_SENDERS,
        config_kwargs={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "read_timeout": _READ_TIMEOUT_S,
            "retries": {"mode": "standard", "total_max_attempts": _TRIES},
        },
    )
    client.retries = _TRIES
    return client


def _info(found: dict[str, Any]) -> ObjectInfo:
    modified: datetime = found["LastModified"]
    return ObjectInfo(int(found["size"]), modified.timestamp(), str(found.get("ETag", "")))


def _is_answer(error: BaseException) -> bool:
    """Tells whether the object store said no, which s3fs makes an `OSError` of, rather than nothing."""
    return isinstance(error, OSError) and not isinstance(error, (TimeoutError, ConnectionError))


def _code(error: BaseException) -> str | None:
    """Returns what the object store called the error, or None where it did not answer."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
    return None
