"""`DirectoryStorage`: the store in one directory, on a local disk or a shared file system with hard links."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from inspect import isfunction
from pathlib import Path
from typing import ParamSpec, TypeVar

from preceptor.errors import UnavailableError
from preceptor_service.failpoints import reached
from preceptor_service.storage.storage import SET_ASIDE, StoreHealth, Versions, blob_name, damaged
from preceptor_service.weight_staging import make_directory, sync_directory

P = ParamSpec("P")
T = TypeVar("T")

_PROBE = b"preceptor"
_TOLD_AS_IT_IS = {errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT}

logger = logging.getLogger(__name__)


def _unavailable(method: Callable[P, T]) -> Callable[P, T]:
    """Turns what may pass, a disk that cannot be read or too many open files, into `UnavailableError`."""

    @wraps(method)
    def told(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except OSError as error:
            if error.errno is None or error.errno in _TOLD_AS_IT_IS:
                raise
            logger.warning("the store cannot be used: %s", error)
            raise UnavailableError(f"the store cannot be used ({os.strerror(error.errno)}); try again") from error

    return told


def _unavailable_where_it_fails(storage: type[T]) -> type[T]:
    for name, method in list(vars(storage).items()):
        if isfunction(method) and not name.startswith("_"):
            setattr(storage, name, _unavailable(method))
    return storage


@_unavailable_where_it_fails
class DirectoryStorage:
    """Implements `Storage` by hard links and `fsync`.

    A life of a run is its directory, which goes away as a whole: what would be linked into it afterwards fails.

    Args:
        root: the directory, made where it is missing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = root / "blobs"
        self._staging = root / "staging"
        self._runs = root / "runs"
        for directory in (self._blobs, self._staging, self._runs):
            make_directory(directory)

    @property
    def staging(self) -> Path:
        """The directory `staging/`; see `Storage`."""
        return self._staging

    def probe(self) -> StoreHealth:
        """Tries a small file in `staging/`; see `Storage`."""
        file = self._staging / f"{uuid.uuid4().hex}.probe"
        try:
            file.write_bytes(_PROBE)
            is_writable = file.read_bytes() == _PROBE
            file.unlink()
            return StoreHealth(is_writable, shutil.disk_usage(self._root).free)
        except OSError:
            with suppress(OSError):
                file.unlink(missing_ok=True)
            return StoreHealth(is_writable=False, free_bytes=None)

    def clock_s(self) -> float:
        """Returns the time of this machine."""
        return time.time()

    def run_ids(self) -> list[str]:
        """Lists `runs/*/run.json`."""
        return sorted(path.parent.name for path in self._runs.glob("*/run.json"))

    def record_tags(self) -> dict[str, str]:
        """Looks at `runs/*/run.json`, which is never written to: another one is another file."""
        tags = {}
        for path in self._runs.glob("*/run.json"):
            with suppress(FileNotFoundError, NotADirectoryError):  # deleted since it was listed
                found = path.stat()
                tags[path.parent.name] = f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"
        return tags

    def has_record(self, run_id: str) -> bool:
        """Looks for the file."""
        return self._record(run_id).exists()

    def read_record(self, run_id: str) -> bytes:
        """Reads the file."""
        try:
            return self._record(run_id).read_bytes()
        except NotADirectoryError as error:
            raise FileNotFoundError(str(error)) from error

    def create_record(self, run_id: str, record: bytes) -> bool:
        """Links the file into its place."""
        path = self._record(run_id)
        _make_below(path.parent)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".run-", suffix=".json") as scratch:
            scratch.write(record)
            scratch.flush()
            os.fsync(scratch.fileno())
            try:
                os.link(scratch.name, path)
            except FileExistsError:
                return False
        sync_directory(path.parent)
        sync_directory(self._runs)
        return True

    def delete_run(self, run_id: str) -> None:
        """Moves the whole directory of the run away in one step."""
        doomed = self._staging / f"{uuid.uuid4().hex}.run"
        try:
            self._record(run_id).stat()
            self._record(run_id).parent.rename(doomed)
        except NotADirectoryError as error:
            raise FileNotFoundError(str(error)) from error
        sync_directory(self._runs)
        shutil.rmtree(doomed, ignore_errors=True)

    def open_versions(self, run_id: str, role: str) -> str:
        """Makes the directory of the role, never that of the run."""
        directory = self._runs / run_id / role
        _make_below(directory)
        reached("versions-made")
        sync_directory(directory.parent)
        reached("versions-durable")
        return self._name(directory)

    def find_versions(self, run_id: str, role: str) -> str | None:
        """Returns the directory of the role, without a look."""
        return self._name(self._runs / run_id / role)

    def delete_versions(self, run_id: str, roles: Sequence[str]) -> None:
        """Moves each directory away in one step."""
        for role in roles:
            doomed = self._staging / f"{uuid.uuid4().hex}.run"
            with suppress(FileNotFoundError):
                (self._runs / run_id / role).rename(doomed)
                shutil.rmtree(doomed)
        with suppress(OSError):  # not empty: the rest belongs to somebody else
            (self._runs / run_id).rmdir()

    def all_versions(self, roles: Sequence[str]) -> list[tuple[str, Versions]]:
        """Lists `runs/*/<role>/`."""
        directories = [directory for role in roles for directory in self._runs.glob(f"*/{role}")]
        folders = [self._name(directory) for directory in directories]
        return [
            (folder, Versions(directory.parent.name, directory.name, self.names(folder)))
            for directory, folder in zip(directories, folders, strict=True)
        ]

    def names(self, folder: str) -> list[str]:
        """Lists the directory."""
        try:
            return os.listdir(self._root / folder)
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        """Reads the file."""
        return (self._root / name).read_bytes()

    def read_once(self, name: str) -> bytes:
        """Reads the file."""
        return self.read(name)

    def create(self, name: str, content: bytes) -> bool:
        """Writes the file under another name, then links it into its place."""
        path = self._root / name
        complete = self._staging / f"{uuid.uuid4().hex}.manifest"
        try:
            with complete.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            reached("manifest-synced")
            try:
                os.link(complete, path)
            except FileExistsError:
                # NFS may say so for its own repeated request; the link count knows.
                if complete.stat().st_nlink == 1:
                    return False
            reached("manifest-named")
            sync_directory(path.parent)
            reached("manifest-durable")
            return True
        finally:
            complete.unlink(missing_ok=True)

    def exists(self, name: str) -> bool:
        """Looks for the file."""
        return (self._root / name).exists()

    def modified_s(self, name: str) -> float:
        """Returns the file's time."""
        return (self._root / name).stat().st_mtime

    def rename(self, name: str, to: str) -> None:
        """Renames the file."""
        (self._root / name).rename(self._root / to)

    def remove(self, name: str) -> None:
        """Removes the file."""
        (self._root / name).unlink()

    def put_blob(self, file: Path, digest: str) -> None:
        """Links the file into its place, without a copy."""
        # Replaced even where it exists: heals a damaged file and makes it young for `collect`.
        os.utime(file)
        link = self._staging / f"{uuid.uuid4().hex}.blob"
        os.link(file, link)
        reached("blob-linked")
        link.replace(self._root / blob_name(digest))
        reached("blob-named")
        sync_directory(self._blobs)
        reached("blob-durable")

    def touch_blob(self, digest: str) -> int:
        """Sets the file's time."""
        path = self.blob(digest)
        os.utime(path)
        return path.stat().st_size

    def blob(self, digest: str) -> Path:
        """Returns the file itself."""
        path = self._root / blob_name(digest)
        if not path.exists():
            raise FileNotFoundError(path)
        return path

    def verified_blob(self, digest: str) -> Path:
        """Reads the file whole."""
        path = self.blob(digest)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != f"sha256:{found}":
            raise damaged(digest, found)
        return path

    def sweep(self, before_s: float) -> None:
        """Removes old files and directories in `staging/`."""
        for leftover in self._staging.iterdir():
            if not leftover.name.endswith(SET_ASIDE) and remove_if_older(leftover, before_s):
                reached("leftover-removed")

    def _record(self, run_id: str) -> Path:
        return self._runs / run_id / "run.json"

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def _make_below(directory: Path) -> None:
    """Makes a directory where it is missing, its parent being there."""
    try:
        directory.mkdir(exist_ok=True)
    except FileExistsError as error:  # it was there, and moved away before a second look
        raise FileNotFoundError(str(directory)) from error


def remove_if_older(path: Path, time_s: float) -> bool:
    """Removes a file, or a directory with what it holds, last written before then; tells whether it did."""
    with suppress(FileNotFoundError):  # another collection was faster
        if path.stat().st_mtime < time_s:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            return True
    return False
