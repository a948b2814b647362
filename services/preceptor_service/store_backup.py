"""A whole store as one tar file, and back, between places of any kind. Called by `preceptor store`.

preceptor-store.json                    the format, first
blobs/<sha256>                          safetensors files, by content
runs/<run_id>/<role>/<version>.json     manifests of versions
runs/<run_id>/journal/, answers/        what a co-trained run handed out
runs/<run_id>/run.json                  records
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from google.protobuf import json_format

from preceptor.errors import InternalError
from preceptor_service.co_training.journal import FILE_NAME, FOLDERS, check_content
from preceptor_service.run_store import parse_record
from preceptor_service.storage import Storage
from preceptor_service.weight_staging import Staged, disk_errors
from preceptor_service.weight_store import RUN_ID
from preceptor_service.weight_versions import ROLES, WeightsVersion, parse_manifest

_FORMAT_NAME = "preceptor-store.json"
_FORMAT = b'{"format": 1}'
_BLOB = re.compile(r"blobs/([0-9a-f]{64})")
_MANIFEST = re.compile(rf"runs/({RUN_ID.pattern})/({'|'.join(ROLES)})/([0-9]{{8,18}})\.json")
_JOURNAL = re.compile(rf"runs/({RUN_ID.pattern})/({'|'.join(FOLDERS)})/({FILE_NAME})")
_RECORD = re.compile(rf"runs/({RUN_ID.pattern})/run\.json")
_MAX_JSON_BYTES = 1 << 20
_PART_BYTES = 1 << 20
_TAR_END_BYTES = 2 * tarfile.BLOCKSIZE

_TRIES = 5
"""How often a run is read anew because its newest weights expired before they were read."""


class BackupError(Exception):
    """The file or the store cannot be used for it; says why."""


@dataclass
class Report:
    """What was copied, and what a backup left out because it is damaged in the store."""

    runs: int = 0
    versions: int = 0
    blobs: int = 0
    total_bytes: int = 0
    left_out: list[str] = field(default_factory=list)


def back_up(storage: Storage, file: Path) -> Report:
    """Writes every run with its versions to a new tar file. Gateways may go on meanwhile.

    Each run is as it was at one moment during the call: its journal is read first, then its manifests, then the weights
    that they name. The file appears whole. Holds the manifests of one run and one sub-batch in memory, never weights.

    Raises:
        BackupError: the file exists or cannot be made, the store is empty, or weights of a run expire faster than
            they are read.
        OSError, PreceptorError: the file or the store cannot be used.
    """
    if file.exists():
        raise BackupError(f"{file} exists; name a new file")
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}.part")
    try:
        with tarfile.open(partial, "x", format=tarfile.PAX_FORMAT) as tar:
            report = _backed_up(storage, tar)
        partial.rename(file)
    except OSError as error:
        if error.filename != str(partial):
            raise
        raise BackupError(f"cannot write {file}: {error.strerror}") from error  # in the reader's words, not in ours
    finally:
        partial.unlink(missing_ok=True)
    return report


def stream_backup(storage: Storage, stream: IO[bytes]) -> Report:
    """Writes the same to a stream that cannot go back, such as a pipe; cut off by a failure it is refused by `restore`.

    Raises:
        BackupError, OSError, PreceptorError: as `back_up` does.
    """
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        report = _backed_up(storage, tar)
    stream.flush()
    return report


def restore(file: Path, storage: Storage) -> Report:
    """Writes what a backup holds to an empty store, under the same names and versions.

    Nothing of the file is trusted: names other than those above, weights with another checksum, and manifests
    that do not fit their run and weights are refused before anything is written.

    Raises:
        BackupError: the store is not empty, or the file is not a sound backup.
        OSError, PreceptorError: the file or the store cannot be used; what was written has to go before the next try.
    """
    _check_empty(storage)
    try:
        content = file.open("rb")
    except OSError as error:
        raise BackupError(f"cannot read {file}: {error.strerror}") from error
    with content:
        return _restored(content, str(file), storage)


def restore_stream(stream: IO[bytes], storage: Storage) -> Report:
    """Does the same from a stream that cannot go back; it lies in `staging/` meanwhile, because it is read twice.

    Raises:
        BackupError, OSError, PreceptorError: as `restore` does.
    """
    _check_empty(storage)
    with disk_errors(), tempfile.TemporaryFile(dir=storage.staging) as content:
        shutil.copyfileobj(stream, content, _PART_BYTES)
        content.seek(0)
        return _restored(content, "the stream", storage)


def _check_empty(storage: Storage) -> None:
    if storage.run_ids() or storage.names("blobs"):
        raise BackupError("the store to restore to is not empty; name a new directory or prefix")


def _restored(content: IO[bytes], name: str, storage: Storage) -> Report:
    try:
        with tarfile.open(fileobj=content, mode="r:") as tar:
            return _written(tar, _checked(tar, content), storage)
    except tarfile.TarError as error:
        raise BackupError(f"{name} is not a whole tar file: {error}") from error


def _backed_up(storage: Storage, tar: tarfile.TarFile) -> Report:
    run_ids = storage.run_ids()
    if not run_ids:
        raise BackupError("the store holds no run")
    backup = _Backup(storage, tar)
    for run_id in run_ids:
        backup.add(run_id)
    return backup.report


class _ExpiredError(Exception):
    """The newest version of a role is no longer kept."""


class _Manifest(NamedTuple):
    role: str
    name: str
    content: bytes
    version: WeightsVersion


class _Backup:
    def __init__(self, storage: Storage, tar: tarfile.TarFile) -> None:
        self._storage = storage
        self._tar = tar
        self._blobs: set[str] = set()
        self._journals: set[str] = set()
        self.report = Report()
        self._write(_FORMAT_NAME, _FORMAT)

    def add(self, run_id: str) -> None:
        """Writes one run: weights, then manifests, then the record."""
        for _ in range(_TRIES):
            try:
                self._write_journal(run_id)
                record, manifests, left_out = self._read(run_id)
            except FileNotFoundError:
                return  # deleted since it was listed
            except _ExpiredError:
                continue
            break
        else:
            raise BackupError(f"weights of run {run_id!r} expire faster than they are read; raise weights.grace_s")
        for manifest in manifests:
            self._write(f"runs/{run_id}/{manifest.role}/{manifest.version.version:08d}.json", manifest.content)
        self._write(f"runs/{run_id}/run.json", record)
        self.report.runs += 1
        self.report.versions += len(manifests)
        self.report.left_out += left_out

    def _write_journal(self, run_id: str) -> None:
        for folder in FOLDERS:
            place = self._storage.find_versions(run_id, folder)
            for name in sorted(self._storage.names(place) if place else ()):
                written = f"runs/{run_id}/{folder}/{name}"
                if _JOURNAL.fullmatch(written) and written not in self._journals:
                    with suppress(FileNotFoundError):  # trained on, and cleared away since
                        self._write(written, self._storage.read_once(f"{place}/{name}"))
                        self._journals.add(written)

    def _read(self, run_id: str) -> tuple[bytes, list[_Manifest], list[str]]:
        """Returns record and manifests of a run, its weights written, and what is damaged of it."""
        record, left_out = self._storage.read_record(run_id), list[str]()
        kept = []
        for role in ROLES:
            newest_first = self._manifests(run_id, role, left_out)
            for manifest in newest_first:
                try:
                    for digest in sorted(manifest.version.digests):
                        self._write_blob(digest)
                except FileNotFoundError:
                    if self._storage.exists(manifest.name):
                        left_out.append(f"{role} version {manifest.version.version} of run {run_id!r}: no weights")
                    elif manifest is newest_first[0]:
                        raise _ExpiredError from None
                except InternalError as error:
                    left_out.append(f"{role} version {manifest.version.version} of run {run_id!r}: {error}")
                else:
                    kept.append(manifest)
        return record, kept, left_out

    def _manifests(self, run_id: str, role: str, left_out: list[str]) -> list[_Manifest]:
        folder = self._storage.find_versions(run_id, role)
        found = []
        for name in sorted(self._storage.names(folder) if folder else (), reverse=True):
            match = _MANIFEST.fullmatch(f"runs/{run_id}/{role}/{name}")
            try:
                if match:
                    content = self._storage.read(f"{folder}/{name}")
                    found.append(_Manifest(role, f"{folder}/{name}", content, parse_manifest(content, int(match[3]))))
            except FileNotFoundError:
                continue  # expired since it was listed
            except (ValueError, TypeError) as error:
                left_out.append(f"{role} version {name.partition('.')[0]} of run {run_id!r}: {error}")
        return found

    def _write_blob(self, digest: str) -> None:
        if digest in self._blobs:
            return
        with self._storage.verified_blob(digest).open("rb") as file:
            member = tarfile.TarInfo(f"blobs/{digest.removeprefix('sha256:')}")
            member.size = file.seek(0, io.SEEK_END)
            file.seek(0)
            self._tar.addfile(member, file)
        self._blobs.add(digest)
        self.report.blobs += 1
        self.report.total_bytes += member.size

    def _write(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))


@dataclass
class _Contents:
    blobs: dict[str, tarfile.TarInfo] = field(default_factory=dict)
    records: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str, int], bytes] = field(default_factory=dict)
    journals: dict[tuple[str, str, str], tarfile.TarInfo] = field(default_factory=dict)


def _checked(tar: tarfile.TarFile, file: IO[bytes]) -> _Contents:
    """Returns what a backup holds, after reading all of it; `file` is what `tar` reads."""
    contents, seen = _Contents(), set[str]()
    for member in tar:
        name = member.name
        if name in seen or not member.isreg():
            raise BackupError(f"the file holds {name!r} twice, or as something other than a file")
        if not seen and (name != _FORMAT_NAME or _small(tar, member) != _FORMAT):
            raise BackupError(
                f"the file does not begin with {_FORMAT_NAME} of this version; is it a backup of a store?"
            )
        seen.add(name)
        if match := _BLOB.fullmatch(name):
            contents.blobs[_sound(tar, member, match[1])] = member
        elif match := _RECORD.fullmatch(name):
            contents.records[match[1]] = _small(tar, member)
        elif match := _MANIFEST.fullmatch(name):
            contents.manifests[match[1], match[2], int(match[3])] = _small(tar, member)
        elif match := _JOURNAL.fullmatch(name):
            contents.journals[match[1], match[2], match[3]] = _readable(tar, member)
        elif name != _FORMAT_NAME:
            raise BackupError(f"the file holds {name!r}, which is no part of a store")
    # tarfile itself takes the end of the file for the end of the archive, and what is missing is whole runs.
    file.seek(tar.offset)
    if len(file.read(_TAR_END_BYTES)) < _TAR_END_BYTES:
        raise tarfile.ReadError("it lacks its end")
    _check_records(contents)
    return contents


def _check_records(contents: _Contents) -> None:
    for run_id, content in contents.records.items():
        try:
            if parse_record(content).spec.run_id != run_id:
                raise ValueError("it is that of another run")
        except (ValueError, KeyError, TypeError, json_format.ParseError) as error:
            raise BackupError(f"the record of run {run_id!r} is damaged in the file: {error}") from error
    for (run_id, role, number), content in contents.manifests.items():
        try:
            version = parse_manifest(content, number)
        except (ValueError, TypeError) as error:
            raise BackupError(f"{role} version {number} of run {run_id!r} is damaged in the file: {error}") from error
        blob = contents.blobs.get(version.digest)
        lacks_any = not version.digests <= contents.blobs.keys()
        if run_id not in contents.records or lacks_any or blob is None or blob.size != version.total_bytes:
            raise BackupError(f"{role} version {number} of run {run_id!r} lacks its record or its weights in the file")


def _readable(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tarfile.TarInfo:
    try:
        check_content(b"".join(_parts(tar, member)), member.name)
    except InternalError as error:
        raise BackupError(str(error)) from error
    return member


def _small(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > _MAX_JSON_BYTES:
        raise BackupError(f"{member.name!r} has {member.size} bytes, the limit is {_MAX_JSON_BYTES}")
    return b"".join(_parts(tar, member))


def _sound(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> str:
    found = hashlib.sha256()
    for part in _parts(tar, member):
        found.update(part)
    if found.hexdigest() != name:
        raise BackupError(f"weights sha256:{name} are damaged in the file: their SHA-256 is {found.hexdigest()}")
    return f"sha256:{name}"


def _parts(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    file: IO[bytes] | None = tar.extractfile(member)
    if file is None:
        raise BackupError(f"the file holds {member.name!r} as something other than a file")
    with file:
        while part := file.read(_PART_BYTES):
            yield part


def _written(tar: tarfile.TarFile, contents: _Contents, storage: Storage) -> Report:
    report = Report(len(contents.records), len(contents.manifests), len(contents.blobs))
    with disk_errors():
        for digest, member in contents.blobs.items():
            with Staged(storage.staging / f"{uuid.uuid4().hex}.upload", member.size) as staged:
                for part in _parts(tar, member):
                    staged.write(part)
                staged.seal(bytes.fromhex(digest.removeprefix("sha256:")))
                storage.put_blob(staged.path, digest)
            report.total_bytes += member.size
        for run_id, record in contents.records.items():
            _create(storage.create_record(run_id, record))
        for (run_id, role, number), manifest in sorted(contents.manifests.items()):
            _create(storage.create(f"{storage.open_versions(run_id, role)}/{number:08d}.json", manifest))
        for (run_id, folder, name), member in sorted(contents.journals.items(), key=lambda item: item[0]):
            if run_id in contents.records:
                content = b"".join(_parts(tar, member))
                _create(storage.create(f"{storage.open_versions(run_id, folder)}/{name}", content))
    return report


def _create(is_first: bool) -> None:
    if not is_first:
        raise BackupError("somebody else writes to the store; empty it, and restore while no gateway uses it")
