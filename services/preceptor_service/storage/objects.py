"""`ObjectStorage`: the store in an object store that can create exclusively.

An object store has neither directories that move as a whole nor links, so two things differ from a directory:

* a life of a run is a name in its record, and its versions lie below that name: `runs/<run_id>/<life>/<role>/`.
  What a late push writes there once the record is gone, nobody sees, and `sweep` removes it;
* moving is copying, then removing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from preceptor.errors import InternalError, PreceptorError
from preceptor_service.config import ConfigError
from preceptor_service.failpoints import reached
from preceptor_service.storage.blob_cache import BlobCache
from preceptor_service.storage.bucket import PART_BYTES, Bucket
from preceptor_service.storage.storage import SET_ASIDE, StoreHealth, Versions, blob_name

_LIFE = re.compile(r"[0-9a-f]{32}")
_RECORD = re.compile(r"runs/([^/]+)/run\.json")
_VERSION = re.compile(r"runs/([^/]+)/([0-9a-f]{32})/([^/]+)/([^/]+)")
_PROBE = b"preceptor"
_MANIFESTS_HELD = 16384

_SWEEP_PAUSE_S = 600.0
"""What is swept is long out of use, and looking for it costs a listing of every run."""

logger = logging.getLogger(__name__)


class _Listed(NamedTuple):
    run_id: str
    life: str
    role: str
    name: str


def open_objects(uri: str, cache_path: Path, cache_bytes: int) -> ObjectStorage:
    """Returns the storage below an `s3://` URI, with a cache of weights on this machine.

    Raises:
        ConfigError: s3fs is not installed, or the cache cannot be made.
    """
    try:
        cache = BlobCache(cache_path, cache_bytes)
    except OSError as error:
        raise ConfigError(
            f"weights.cache_path is {cache_path}, which cannot be used: {error.strerror}; choose another"
        ) from error
    return ObjectStorage(Bucket(uri), cache)


def check_objects(uri: str, cache_path: Path, cache_bytes: int) -> None:
    """Returns where that storage can be used, and creates exclusively.

    Raises:
        ConfigError: says what it lacks.
    """
    storage = open_objects(uri, cache_path, cache_bytes)
    try:
        is_exclusive = storage.creates_exclusively()
    except (PreceptorError, OSError) as error:
        raise ConfigError(
            f"weights.path is {uri}, which cannot be used: {error.__cause__ or error}; see whether it is up and what "
            "these credentials may do"
        ) from error
    if not is_exclusive:
        raise ConfigError(
            f"weights.path is {uri}, whose object store overwrites what it was asked to create only where it is "
            "missing (PutObject with If-None-Match: *), so that of two pushes at once one would be lost; "
            "use a store that has conditional writes, or a directory"
        )


class ObjectStorage:
    """Implements `Storage` by conditional writes and a cache of weights on this machine.

    Holds the content of the manifests read last; they never change.
    """

    def __init__(self, bucket: Bucket, cache: BlobCache) -> None:
        self._bucket = bucket
        self._cache = cache
        self._manifests: OrderedDict[str, bytes] = OrderedDict()
        self._lives: dict[str, tuple[str, str | None]] = {}  # by run: the tag of its record, the life that this names
        self._swept_at = -math.inf

    @property
    def staging(self) -> Path:
        """A directory of the cache."""
        return self._cache.staging

    def creates_exclusively(self) -> bool:
        """Tells whether of two creations the second fails, by trying, and whether a listing shows the first."""
        key = f"staging/{uuid.uuid4().hex}.probe"
        try:
            return (
                self._bucket.create(key, _PROBE)
                and not self._bucket.create(key, b"another")
                and self._bucket.read(key) == _PROBE
                and key in self._bucket.list("staging")
            )
        finally:
            with suppress(PreceptorError):  # what is wrong was said already
                self._bucket.remove(key)

    def probe(self) -> StoreHealth:
        """Tries a small object in `staging/`; see `Storage`."""
        key = f"staging/{uuid.uuid4().hex}.probe"
        try:
            self._bucket.write(key, _PROBE)
            is_writable = self._bucket.read(key) == _PROBE
            self._bucket.remove(key)
        except (PreceptorError, OSError):
            return StoreHealth(is_writable=False, free_bytes=None)
        return StoreHealth(is_writable, free_bytes=None)

    def clock_s(self) -> float:
        """Asks the object store, whose clock dates the objects, by writing one."""
        self._bucket.write("staging/clock", _PROBE)
        return self._bucket.info("staging/clock").modified_s

    def run_ids(self) -> list[str]:
        """Lists `runs/`."""
        return sorted(match[1] for key in self._bucket.list("runs") if (match := _RECORD.fullmatch(key)))

    def record_tags(self) -> dict[str, str]:
        """Lists `runs/`, which has the tags."""
        listed = self._bucket.list("runs").items()
        return {match[1]: info.tag for key, info in listed if (match := _RECORD.fullmatch(key))}

    def has_record(self, run_id: str) -> bool:
        """Looks for the object."""
        return self.exists(_record(run_id))

    def read_record(self, run_id: str) -> bytes:
        """Reads the object."""
        return self._bucket.read(_record(run_id))

    def create_record(self, run_id: str, record: bytes) -> bool:
        """Creates the object, with a name for the life that it begins."""
        named = {**json.loads(record), "life": uuid.uuid4().hex}
        return self._bucket.create(_record(run_id), json.dumps(named, indent=1, sort_keys=True).encode())

    def delete_run(self, run_id: str) -> None:
        """Removes the record, then what lies below the name of the life."""
        try:
            below = f"runs/{run_id}/{self._life(run_id)}"
        except InternalError:
            below = f"runs/{run_id}"
        self._bucket.remove(_record(run_id))
        self._remove_below(below)

    def open_versions(self, run_id: str, role: str) -> str:
        """Returns the folder below the name of the life; it needs no making."""
        return f"runs/{run_id}/{self._life(run_id)}/{role}"

    def find_versions(self, run_id: str, role: str) -> str | None:
        """Returns the same folder, where there is a record."""
        try:
            return self.open_versions(run_id, role)
        except FileNotFoundError:
            return None

    def delete_versions(self, run_id: str, roles: Sequence[str]) -> None:
        """Removes them one by one, oldest first: the newest version never seems to go back."""
        for role in roles:
            folder = self.find_versions(run_id, role)
            if folder is not None:
                self._remove_below(folder)

    def all_versions(self, roles: Sequence[str]) -> list[tuple[str, Versions]]:
        """Lists `runs/` once, and reads the records that it did not read before."""
        found: dict[str, Versions] = {}
        living, _ = self._lives_listed()
        for run_id, life, role, name in living:
            if role in roles:
                found.setdefault(f"runs/{run_id}/{life}/{role}", Versions(run_id, role, [])).names.append(name)
        return list(found.items())

    def names(self, folder: str) -> list[str]:
        """Lists the folder."""
        return [key.rpartition("/")[2] for key in self._bucket.list(folder)]

    def read(self, name: str) -> bytes:
        """Returns the manifest from memory, or reads it."""
        content = self._manifests.get(name)
        if content is None:
            content = self._manifests[name] = self._bucket.read(name)
            while len(self._manifests) > _MANIFESTS_HELD:
                with suppress(KeyError):  # another thread was faster
                    self._manifests.popitem(last=False)
        return content

    def read_once(self, name: str) -> bytes:
        """Reads the object, in parts where it is large."""
        return b"".join(self._parts(name, self._bucket.info(name).total_bytes))

    def create(self, name: str, content: bytes) -> bool:
        """Creates the manifest, and takes it back where the life of the run ended meanwhile."""
        if not self._bucket.create(name, content):
            return False
        reached("object-created")
        _, run_id, life, _, _ = name.split("/")
        try:
            is_alive = self._life(run_id) == life
        except FileNotFoundError:
            is_alive = False
        if not is_alive:
            self._bucket.remove(name)
            raise FileNotFoundError(name)
        return True

    def exists(self, name: str) -> bool:
        """Asks for the object."""
        try:
            self._bucket.info(name)
        except FileNotFoundError:
            return False
        return True

    def modified_s(self, name: str) -> float:
        """Returns the object's time, by the clock of the object store."""
        return self._bucket.info(name).modified_s

    def rename(self, name: str, to: str) -> None:
        """Copies the object, then removes it."""
        self._bucket.copy(name, to)
        reached("object-copied")
        self._bucket.remove(name)

    def remove(self, name: str) -> None:
        """Removes the object."""
        self._bucket.remove(name)

    def put_blob(self, file: Path, digest: str) -> None:
        """Sends the file, and keeps it in the cache."""
        self._bucket.upload(file, blob_name(digest))
        reached("object-sent")
        self._cache.keep(file, digest)
        reached("object-cached")

    def touch_blob(self, digest: str) -> int:
        """Copies the object onto itself."""
        self._bucket.touch(blob_name(digest))
        return self._bucket.info(blob_name(digest)).total_bytes

    def blob(self, digest: str) -> Path:
        """Returns the file in the cache, fetched where it is not there."""
        return self._cache.held(digest) or self._fetched(digest)

    def verified_blob(self, digest: str) -> Path:
        """Reads the file in the cache whole; fetches it once more where it is damaged."""
        file = self._cache.held(digest)
        if file is not None:
            with file.open("rb") as opened:
                if digest == f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}":
                    return file
            logger.warning("weights %s are damaged in the cache; they are fetched again", digest)
            self._cache.discard(digest)
        return self._fetched(digest)

    def sweep(self, before_s: float) -> None:
        """Removes old objects in `staging/`, and versions of lives that ended.

        These only now and then, however often it is called; what was left behind in the cache each time.
        """
        self._cache.sweep()
        if time.monotonic() < self._swept_at + _SWEEP_PAUSE_S:
            return
        self._swept_at = time.monotonic()
        for key, info in self._bucket.list("staging").items():
            if not key.endswith(SET_ASIDE) and info.modified_s < before_s:
                self._bucket.remove(key)
                reached("leftover-removed")
        _, dead = self._lives_listed()
        for run_id, life in sorted({(run_id, life) for run_id, life, _, _ in dead}):
            with suppress(InternalError):  # a damaged record may be that of this life
                if self._life_or_none(run_id) != life:
                    self._remove_below(f"runs/{run_id}/{life}")

    def _fetched(self, digest: str) -> Path:
        name = blob_name(digest)
        total_bytes = self._bucket.info(name).total_bytes
        return self._cache.fetch(digest, self._parts(name, total_bytes))

    def _parts(self, name: str, total_bytes: int) -> Iterator[bytes]:
        for start in range(0, total_bytes, PART_BYTES):
            yield self._bucket.read_part(name, start, min(start + PART_BYTES, total_bytes))

    def _life(self, run_id: str) -> str:
        """Returns the name of the life that the run has now.

        Raises:
            FileNotFoundError: there is no such run.
            InternalError: its record is damaged.
        """
        try:
            life = json.loads(self.read_record(run_id))["life"]
            if not _LIFE.fullmatch(life):
                raise ValueError(f"life is {life!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise InternalError(f"the record of run {run_id!r} is damaged; delete the run") from error
        return str(life)

    def _life_or_none(self, run_id: str) -> str | None:
        try:
            return self._life(run_id)
        except FileNotFoundError:
            return None

    def _lives_listed(self) -> tuple[list[_Listed], list[_Listed]]:
        """Returns the versions of all runs, those of their present lives apart from those of ended ones.

        A record is listed after the versions of its run, so a version that is listed without it has outlived it.
        Where a record is damaged, every version may be of its life.
        """
        listed = self._bucket.list("runs")
        lives: dict[str, tuple[str, str | None]] = {}
        for key, info in listed.items():
            if match := _RECORD.fullmatch(key):
                known = self._lives.get(match[1])
                with suppress(FileNotFoundError):  # deleted since it was listed
                    lives[match[1]] = known if known and known[0] == info.tag else (info.tag, self._named_by(match[1]))
        self._lives = lives
        living: list[_Listed] = []
        dead: list[_Listed] = []
        for key in listed:
            if match := _VERSION.fullmatch(key):
                one = _Listed(*match.groups())
                is_alive = one.run_id in lives and lives[one.run_id][1] in (None, one.life)
                (living if is_alive else dead).append(one)
        return living, dead

    def _named_by(self, run_id: str) -> str | None:
        try:
            return self._life(run_id)
        except InternalError as error:
            logger.warning("no version of it is removed from the store: %s", error)
            return None

    def _remove_below(self, folder: str) -> None:
        for key in self._bucket.list(folder):
            self._bucket.remove(key)


def _record(run_id: str) -> str:
    return f"runs/{run_id}/run.json"
