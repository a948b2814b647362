"""`WeightStore`: the durable, versioned weights of every run, in one directory.

Gateways write, scorers read, all at once and without a lock server: the one decision, which push becomes
version n + 1, is the exclusive creation of that version's manifest by a hard link. The directory must lie on
a file system with hard links, shared by all of them (a local disk, NFS, CephFS, EFS).

    blobs/<sha256>                            safetensors files, by content
    runs/<run_id>/<role>/<version>.json       one manifest per committed version; `RunStore` makes runs/<run_id>
    staging/                                  files that are not committed yet
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from preceptor.errors import (
    InternalError,
    InvalidWeightsError,
    PushConflictError,
    ReferenceFrozenError,
    StaleWeightsError,
    TooLargeError,
    WeightsNotFoundError,
)
from preceptor_service.weight_staging import Staged, disk_errors, make_directory, sync_directory

__all__ = ["Role", "Staged", "WeightStore", "WeightsVersion"]

Role = Literal["learner", "reference"]

UPLOAD_GRACE_S = 3600.0
"""A staging file that nothing was written to for so long is taken for abandoned."""

_ROLES: tuple[Role, ...] = ("learner", "reference")
_RUN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MANIFEST = re.compile(r"([0-9]{8,})\.json")
_SET_ASIDE = ".set-aside"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightsVersion:
    """One committed version.

    Attributes:
        version: 1 for the first, then one more each.
        step: the trainer's step that the weights belong to.
        digest: `"sha256:..."` of the safetensors file.
        total_bytes: its size.
        commit_time_s: seconds since the epoch.
    """

    version: int
    step: int
    digest: str
    total_bytes: int
    commit_time_s: float


def weights_not_found(digest: str) -> WeightsNotFoundError:
    """Returns what is said of weights that are not there, and of those that are none of the caller's business."""
    return WeightsNotFoundError(f"the store has no weights {digest}; push them")


class WeightStore:
    """The weights of every run. Safe for any number of threads and processes at once.

    Args:
        root: the directory, made where it is missing.
        keep_versions: newest learner versions kept per run; at least 2.
        max_bytes: largest set of weights.
        grace_s: how long a version stays readable by its digest after it expired, for super-batches that were
            pinned to it before, and a blob that nothing names.

    The directory of a run is made by `RunStore`, never here: a push cannot outlive its run. Every method blocks
    on the disk; `stage`, `commit` and `adopt` raise `DiskFullError` where there is no
    space.
    """

    def __init__(self, root: Path, keep_versions: int, max_bytes: int, grace_s: float = 120.0) -> None:
        self._keep_versions = keep_versions
        self._max_bytes = max_bytes
        self._grace_s = grace_s
        self._blobs = root / "blobs"
        self._staging = root / "staging"
        self._runs = root / "runs"
        for directory in (self._blobs, self._staging, self._runs):
            make_directory(directory)

    def stage(self, total_bytes: int) -> Staged:
        """Returns a file to write `total_bytes` of safetensors to.

        Raises:
            InvalidWeightsError: `total_bytes` is 0 or below.
            TooLargeError: it is above the limit.
        """
        if total_bytes <= 0:
            raise InvalidWeightsError(f"total_bytes is {total_bytes}; announce the size of the safetensors file")
        if total_bytes > self._max_bytes:
            raise TooLargeError(
                f"weights have {total_bytes} bytes, the limit is {self._max_bytes} (weights.max_bytes); "
                "push a smaller proxy, or bfloat16"
            )
        with disk_errors():
            return Staged(self._staging / f"{uuid.uuid4().hex}.upload", total_bytes)

    def commit(
        self,
        run_id: str,
        role: Role,
        staged: Staged,
        step: int,
        base_version: int,
        rewind: bool = False,
        is_current: Callable[[], bool] = lambda: True,
    ) -> WeightsVersion:
        """Makes sealed weights the next version of a run, atomically and durably.

        Idempotent: a learner with the step and digest of a kept version, or a reference with the digest of
        the committed one, answers that version. Only with `rewind` a learner must equal the newest version
        for that, since going back to an older one is what is asked for.

        Args:
            run_id: the run.
            role: which model of it.
            staged: sealed, and checked against the architecture.
            step: the trainer's step.
            base_version: newest version when the push began, 0 for none; not read for a reference.
            rewind: accept a `step` below the newest version's.
            is_current: asked at the last moment whether the run is still the one that was meant, not another
                of its name.

        Raises:
            PushConflictError: another version was committed since `base_version`, or the run was deleted.
            StaleWeightsError: `step` is older than the newest version's.
            ReferenceFrozenError: the run has another reference.
        """
        digest = staged.digest
        if digest is None:
            raise ValueError("the staged weights are not sealed; call seal() first")
        with disk_errors():
            self._keep_blob(staged.path, digest)
            committed = self._commit(run_id, role, digest, staged.total_bytes, step, base_version, rewind, is_current)
            if not self._blob(digest).exists():  # `collect` took it for old just before the manifest named it
                self._keep_blob(staged.path, digest)
        return committed

    def adopt(
        self, run_id: str, role: Role, digest: str, is_current: Callable[[], bool] = lambda: True
    ) -> WeightsVersion:
        """Makes weights that the store already holds the first version of a run, at step 0. Idempotent.

        `is_current` is that of `commit`.

        Raises:
            WeightsNotFoundError: there are none with that digest.
            ReferenceFrozenError: the run has another reference.
            PushConflictError: the run has another learner, or was deleted.
        """
        total_bytes = self.blob_path(digest).stat().st_size
        with disk_errors():
            os.utime(self.blob_path(digest))
            committed = self._commit(run_id, role, digest, total_bytes, 0, 0, False, is_current)
        self.blob_path(digest)
        return committed

    def head(self, run_id: str, role: Role) -> WeightsVersion | None:
        """Returns the newest committed version, or None before the first.

        Raises:
            InternalError: its manifest is damaged.
        """
        numbers = self._numbers(run_id, role)
        return self._read(run_id, role, numbers[-1]) if numbers else None

    def version(self, run_id: str, role: Role, version: int) -> WeightsVersion:
        """Returns one committed version that is kept.

        Raises:
            WeightsNotFoundError: there is no such version, or it expired.
            InternalError: its manifest is damaged.
        """
        kept = self._kept_numbers(run_id, role)
        if version not in kept:
            raise WeightsNotFoundError(f"run {run_id!r} has no {role} version {version}; kept are {kept}")
        return self._read(run_id, role, version)

    def versions(self, run_id: str, role: Role) -> tuple[WeightsVersion, ...]:
        """Returns the committed versions that are kept and intact, oldest first."""
        return tuple(self._intact(run_id, role, self._kept_numbers(run_id, role)))

    def blob_path(self, digest: str) -> Path:
        """Returns where the weights with that digest lie.

        Raises:
            WeightsNotFoundError: there are none, or `digest` is not one.
        """
        if not _DIGEST.fullmatch(digest):
            raise WeightsNotFoundError(f"digest is {digest[:80]!r}; give 'sha256:' and 64 hexadecimal digits")
        path = self._blob(digest)
        if not path.exists():
            raise weights_not_found(digest)
        return path

    def verify(self, digest: str) -> Path:
        """Returns where the weights lie, after reading them whole and comparing their checksum.

        Raises:
            WeightsNotFoundError: there are none.
            InternalError: the file is damaged.
        """
        path = self.blob_path(digest)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != f"sha256:{found}":
            raise InternalError(
                f"weights {digest} are damaged in the store: the file has the SHA-256 {found}; push them again"
            )
        return path

    def delete_run(self, run_id: str) -> None:
        """Forgets every version of a run. Does nothing where there is none."""
        for role in _ROLES:
            doomed = self._staging / f"{uuid.uuid4().hex}.run"
            with suppress(FileNotFoundError):
                self._directory(run_id, role).rename(doomed)
                shutil.rmtree(doomed)
        with suppress(OSError):  # not empty: the rest belongs to somebody else
            (self._runs / run_id).rmdir()

    def collect(self) -> None:
        """Removes learner versions that expired `grace_s` ago, blobs that none names, and abandoned uploads.

        Safe beside commits and other collections: what a version in use names is never lost. Call it now
        and then.
        """
        now = time.time()
        for directory in self._runs.glob("*/learner"):
            numbers = _numbers_in(directory)
            for expired, successor in zip(numbers, numbers[self._keep_versions :], strict=False):
                # It stays a while after it expired, for the super-batches that are pinned to it, and so that a
                # slow push can still see that it lost.
                with suppress(FileNotFoundError):  # another collection was faster
                    if _manifest_path(directory, successor).stat().st_mtime < now - self._grace_s:
                        _manifest_path(directory, expired).unlink()
        for set_aside in self._staging.glob(f"*{_SET_ASIDE}"):
            self._restore_or_remove(set_aside)
        named = self._named_digests()
        for blob in self._blobs.iterdir() if named is not None else ():
            with suppress(FileNotFoundError):  # another collection was faster
                if blob.name not in (named or ()) and blob.stat().st_mtime < now - self._grace_s:
                    # Set aside first: a commit that named it in this very moment is seen afterwards.
                    set_aside = self._staging / f"{blob.name}.{uuid.uuid4().hex}{_SET_ASIDE}"
                    blob.rename(set_aside)
                    self._restore_or_remove(set_aside)
        for leftover in self._staging.iterdir():
            if not leftover.name.endswith(_SET_ASIDE):
                _remove_if_older(leftover, now - UPLOAD_GRACE_S)

    def _commit(
        self,
        run_id: str,
        role: Role,
        digest: str,
        total_bytes: int,
        step: int,
        base_version: int,
        rewind: bool,
        is_current: Callable[[], bool],
    ) -> WeightsVersion:
        directory = self._directory(run_id, role)
        # Before `is_current`: a run of that name made later has no such directory until it is pushed to itself.
        try:
            directory.mkdir(exist_ok=True)
            sync_directory(directory.parent)
        except FileNotFoundError as error:
            raise _deleted(run_id) from error
        numbers = self._kept_numbers(run_id, role)
        kept = self._intact(run_id, role, numbers)
        newest = numbers[-1] if numbers else 0
        if (committed := _repeated(kept, newest, role, digest, step, rewind)) is not None:
            return committed
        if role == "reference" and newest:
            raise ReferenceFrozenError(
                f"run {run_id!r} has the reference {kept[-1].digest if kept else '(damaged)'}, not {digest}; "
                "a reference never changes under a run, create another run"
            )
        if role == "learner" and newest != base_version:
            raise PushConflictError(
                f"run {run_id!r} is at learner version {newest}, and was at {base_version} when this push began; "
                "another push won, push again if these weights are still newer"
            )
        if role == "learner" and kept and step < kept[-1].step and not rewind:
            raise StaleWeightsError(
                f"step is {step}, the committed learner's is {kept[-1].step}; "
                "push newer weights, or set rewind where training went back to a checkpoint"
            )
        version = WeightsVersion(newest + 1, step, digest, total_bytes, time.time())
        if not is_current():
            raise _deleted(run_id)
        try:
            is_first = self._create(_manifest_path(directory, version.version), version)
        except FileNotFoundError as error:
            raise _deleted(run_id) from error
        if is_first:
            return version
        # Lost by a hair. The winner may be a repeat of this very push.
        kept = self._intact(run_id, role, self._kept_numbers(run_id, role))
        if (committed := _repeated(kept, newest + 1, role, digest, step, rewind)) is not None:
            return committed
        if role == "reference":
            raise ReferenceFrozenError(
                f"run {run_id!r} was given another reference meanwhile; a reference never changes under a run"
            )
        raise PushConflictError(
            f"run {run_id!r} got learner version {newest + 1} from another push meanwhile; "
            "push again if these weights are still newer"
        )

    def _create(self, manifest: Path, version: WeightsVersion) -> bool:
        """Creates the manifest whole and durable; False where it exists already.

        Raises:
            FileNotFoundError: the run's directory is gone.
        """
        complete = self._staging / f"{uuid.uuid4().hex}.manifest"
        try:
            with complete.open("x") as file:
                json.dump(asdict(version), file)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(complete, manifest)
            except FileExistsError:
                # NFS may say so for its own repeated request; the link count knows.
                if complete.stat().st_nlink == 1:
                    return False
            sync_directory(manifest.parent)
            return True
        finally:
            complete.unlink(missing_ok=True)

    def _keep_blob(self, staged: Path, digest: str) -> None:
        # Replaced even where it exists: heals a damaged file and makes it young for `collect`.
        os.utime(staged)
        link = self._staging / f"{uuid.uuid4().hex}.blob"
        os.link(staged, link)
        link.replace(self._blob(digest))
        sync_directory(self._blobs)

    def _restore_or_remove(self, set_aside: Path) -> None:
        name = set_aside.name.partition(".")[0]
        named = self._named_digests()
        with suppress(FileNotFoundError):  # another collection was faster
            if (named is None or name in named) and not (self._blobs / name).exists():
                set_aside.rename(self._blobs / name)
            else:
                set_aside.unlink()

    def _named_digests(self) -> set[str] | None:
        """Returns the blob names of all versions with a manifest, or None where one cannot be read."""
        named = set()
        for role in _ROLES:
            for directory in self._runs.glob(f"*/{role}"):
                run_id = directory.parent.name
                for number in _numbers_in(directory):
                    try:
                        named.add(self._blob(self._read(run_id, role, number).digest).name)
                    except WeightsNotFoundError:
                        continue  # deleted since it was listed
                    except InternalError as error:
                        logger.warning("no weights are removed from the store: %s", error)
                        return None
        return named

    def _intact(self, run_id: str, role: Role, numbers: list[int]) -> list[WeightsVersion]:
        versions = []
        for number in numbers:
            try:
                versions.append(self._read(run_id, role, number))
            except WeightsNotFoundError:
                continue  # deleted since it was listed
            except InternalError as error:
                logger.warning("left out: %s", error)
        return versions

    def _read(self, run_id: str, role: Role, number: int) -> WeightsVersion:
        path = _manifest_path(self._directory(run_id, role), number)
        try:
            version = WeightsVersion(**json.loads(path.read_bytes()))
            if version.version != number or not _DIGEST.fullmatch(version.digest):
                raise ValueError(f"it describes version {version.version} with digest {version.digest}")
        except FileNotFoundError as error:
            raise WeightsNotFoundError(f"run {run_id!r} has no {role} version {number} any more") from error
        except (ValueError, TypeError) as error:
            raise InternalError(
                f"{role} version {number} of run {run_id!r} is damaged in the store ({error}); push the weights again"
            ) from error
        return version

    def _kept_numbers(self, run_id: str, role: Role) -> list[int]:
        return self._numbers(run_id, role)[-self._keep_versions :]

    def _numbers(self, run_id: str, role: Role) -> list[int]:
        return _numbers_in(self._directory(run_id, role))

    def _directory(self, run_id: str, role: Role) -> Path:
        if not _RUN_ID.fullmatch(run_id):
            raise ValueError(f"run_id is {run_id!r}; it must match {_RUN_ID.pattern}")
        return self._runs / run_id / role

    def _blob(self, digest: str) -> Path:
        return self._blobs / digest.removeprefix("sha256:")


def _deleted(run_id: str) -> PushConflictError:
    return PushConflictError(f"run {run_id!r} was deleted while weights were pushed to it; create it and push again")


def _repeated(
    kept: list[WeightsVersion], newest: int, role: Role, digest: str, step: int, rewind: bool
) -> WeightsVersion | None:
    for version in kept:
        same = version.digest == digest and (role == "reference" or version.step == step)
        if same and (version.version == newest or not rewind):
            return version
    return None


def _numbers_in(directory: Path) -> list[int]:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for name in names if (match := _MANIFEST.fullmatch(name)))


def _manifest_path(directory: Path, number: int) -> Path:
    return directory / f"{number:08d}.json"


def _remove_if_older(path: Path, time_s: float) -> None:
    with suppress(FileNotFoundError):  # another collection was faster
        if path.stat().st_mtime < time_s:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
