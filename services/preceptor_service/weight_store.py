"""`WeightStore`: the durable, versioned weights of every run, in a directory or an object store.

Gateways write, scorers read, all at once and without a lock server: the one decision, which push becomes
version n + 1, is the exclusive creation of that version's manifest. What is needed of the place where the
files lie is `Storage`; every decision is made here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from preceptor.errors import (
    DiskFullError,
    InternalError,
    InvalidWeightsError,
    PushConflictError,
    ReferenceFrozenError,
    StaleWeightsError,
    TooLargeError,
    UnavailableError,
    WeightsNotFoundError,
)
from preceptor_service.config import WeightsConfig
from preceptor_service.failpoints import reached
from preceptor_service.storage import SET_ASIDE, Storage, StoreHealth, as_storage, blob_name, open_storage
from preceptor_service.weight_staging import Staged, disk_errors

__all__ = ["ROLES", "RUN_ID", "Role", "Staged", "StoreHealth", "WeightStore", "WeightsVersion"]

Role = Literal["learner", "reference", "reference_fold_1"]

UPLOAD_GRACE_S = 3600.0
"""A staging file that nothing was written to for so long is taken for abandoned."""

ROLES: tuple[Role, ...] = ("learner", "reference", "reference_fold_1")
"""Every role that weights have in a run."""

RUN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MANIFEST = re.compile(r"([0-9]{8,})\.json")

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
        optimiser_digest: of what training needs beside the weights to go on from them; only of a co-trained learner,
            and never loaded to score.
        reference_digest, reference_bytes, reference_optimiser_digest: of the reference that is trained beside it, where
            there is one.
    """

    version: int
    step: int
    digest: str
    total_bytes: int
    commit_time_s: float
    optimiser_digest: str | None = None
    reference_digest: str | None = None
    reference_bytes: int | None = None
    reference_optimiser_digest: str | None = None

    @property
    def digests(self) -> set[str]:
        """Every blob that it names."""
        named = (self.digest, self.optimiser_digest, self.reference_digest, self.reference_optimiser_digest)
        return {digest for digest in named if digest is not None}


def weights_not_found(digest: str) -> WeightsNotFoundError:
    """Returns what is said of weights that are not there, and of those that are none of the caller's business."""
    return WeightsNotFoundError(f"the store has no weights {digest}; push them")


class _Place(NamedTuple):
    """Where the versions of one role of a run lie; `folder` is None where the run is not there."""

    run_id: str
    role: str
    folder: str | None


class WeightStore:
    """The weights of every run. Safe for any number of threads and processes at once.

    Args:
        root: a directory, made where it is missing, or an open storage.
        keep_versions: newest learner versions kept per run; at least 2.
        max_bytes: largest set of weights.
        grace_s: how long a version stays readable by its digest after it expired, for super-batches that were
            pinned to it before, and a blob that nothing names.

    The life of a run is begun by `RunStore`, never here: a push cannot outlive its run. Every method blocks
    on the disk or the network; `stage`, `commit` and `adopt` raise `DiskFullError` where there is no space, and
    all but `probe` and `collect` raise `UnavailableError` where an object store cannot be reached.
    """

    def __init__(self, root: Path | Storage, keep_versions: int, max_bytes: int, grace_s: float = 120.0) -> None:
        self._keep_versions = keep_versions
        self._max_bytes = max_bytes
        self._grace_s = grace_s
        self._storage = as_storage(root)

    @property
    def storage(self) -> Storage:
        """The place where it lies, for what lies beside the weights."""
        return self._storage

    @classmethod
    def open(cls, settings: WeightsConfig) -> WeightStore:
        """Returns the store that `settings` describe."""
        return cls(open_storage(settings), settings.keep_versions, settings.max_bytes, settings.grace_s)

    def probe(self) -> StoreHealth:
        """Writes, reads back and removes something small, to tell whether pushes can be stored. Never raises."""
        return self._storage.probe()

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
            return Staged(self._storage.staging / f"{uuid.uuid4().hex}.upload", total_bytes)

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
        the committed one, answers that version. A learner must equal the newest version for that where it comes with
        `rewind`, since going back to an older one is what is asked for, or is ahead of the newest in steps, since
        training went back before and came again to where it was.

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
            self._storage.put_blob(staged.path, digest)
            committed = self._commit(run_id, role, digest, staged.total_bytes, step, base_version, rewind, is_current)
            if not self._storage.exists(blob_name(digest)):  # `collect` took it for old before the manifest named it
                self._storage.put_blob(staged.path, digest)
        return committed

    def put(self, content: bytes) -> str:
        """Makes a safetensors file a blob, durably, and returns its digest. `collect` removes it where none names it.

        Raises:
            TooLargeError: it is above the limit.
        """
        with self.stage(len(content)) as staged:
            staged.write(content)
            staged.seal(hashlib.sha256(content).digest())
            with disk_errors():
                self._storage.put_blob(staged.path, staged.digest or "")
            return staged.digest or ""

    def commit_trained(
        self, run_id: str, version: WeightsVersion, is_current: Callable[[], bool] = lambda: True
    ) -> WeightsVersion:
        """Makes blobs of `put` the learner version that `version` says, or returns what was committed as that before.

        `is_current` is that of `commit`.

        Raises:
            PushConflictError: the run was deleted.
            WeightsNotFoundError: a blob is gone; train again.
        """
        with disk_errors():
            try:
                folder = self._storage.open_versions(_checked_run(run_id), "learner")
                for digest in version.digests:
                    self.require(digest)
                if not is_current():
                    raise _deleted(run_id)
                if self._create(_manifest(folder, version.version), version):
                    return version
            except FileNotFoundError as error:
                raise _deleted(run_id) from error
        return self._read(_Place(run_id, "learner", folder), version.version)

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
        self.require(digest)
        with disk_errors():
            try:
                total_bytes = self._storage.touch_blob(digest)
            except FileNotFoundError as error:  # collected since
                raise weights_not_found(digest) from error
            committed = self._commit(run_id, role, digest, total_bytes, 0, 0, False, is_current)
        self.require(digest)
        return committed

    def head(self, run_id: str, role: Role) -> WeightsVersion | None:
        """Returns the newest committed version, or None before the first.

        Raises:
            InternalError: its manifest is damaged.
        """
        place = self._place(run_id, role)
        numbers = self._numbers(place)
        return self._read(place, numbers[-1]) if numbers else None

    def newest_number(self, run_id: str, role: Role) -> int:
        """Returns the number of the newest committed version, damaged or not; 0 before the first."""
        return max(self._numbers(self._place(run_id, role)), default=0)

    def newest_intact(self, run_id: str, role: Role) -> WeightsVersion | None:
        """Returns the newest committed version that is kept and intact; one above it that is damaged is logged."""
        place = self._place(run_id, role)
        for number in reversed(self._kept_numbers(place)):
            if intact := self._intact(place, [number]):
                return intact[0]
        return None

    def version(self, run_id: str, role: Role, version: int) -> WeightsVersion:
        """Returns one committed version that is kept.

        Raises:
            WeightsNotFoundError: there is no such version, or it expired.
            InternalError: its manifest is damaged.
        """
        place = self._place(run_id, role)
        kept = self._kept_numbers(place)
        if version not in kept:
            raise WeightsNotFoundError(f"run {run_id!r} has no {role} version {version}; kept are {kept}")
        return self._read(place, version)

    def versions(self, run_id: str, role: Role) -> tuple[WeightsVersion, ...]:
        """Returns the committed versions that are kept and intact, oldest first."""
        place = self._place(run_id, role)
        return tuple(self._intact(place, self._kept_numbers(place)))

    def require(self, digest: str) -> None:
        """Returns where the store has the weights with that digest.

        Raises:
            WeightsNotFoundError: there are none, or `digest` is not one.
        """
        if not self._storage.exists(blob_name(_checked(digest))) and not self._brought_back(digest):
            raise weights_not_found(digest)

    def blob_path(self, digest: str) -> Path:
        """Returns a file on this machine with those weights; fetched, where the store lies elsewhere.

        Raises:
            WeightsNotFoundError: there are none, or `digest` is not one.
        """
        return self._found(self._storage.blob, digest)

    def verify(self, digest: str) -> Path:
        """Returns that file, after reading it whole and comparing its checksum.

        Raises:
            WeightsNotFoundError: there are none.
            InternalError: the weights are damaged.
        """
        return self._found(self._storage.verified_blob, digest)

    def delete_run(self, run_id: str) -> None:
        """Forgets every version of a run. Does nothing where there is none."""
        self._storage.delete_versions(run_id, ROLES)

    def collect(self) -> None:
        """Removes learner versions that expired `grace_s` ago, blobs that none names, and abandoned uploads.

        Safe beside commits and other collections: what a version in use names is never lost. Call it now
        and then; where an object store cannot be reached, the next collection does what this one did not.
        """
        try:
            self._collect()
        except (UnavailableError, DiskFullError) as error:
            logger.warning("not everything that expired was removed from the store: %s", error)

    def _collect(self) -> None:
        storage, now = self._storage, self._storage.clock_s()
        for folder, versions in storage.all_versions(("learner",)):
            numbers = _numbers_among(versions.names)
            for expired, successor in zip(numbers, numbers[self._keep_versions :], strict=False):
                # It stays a while after it expired, for the super-batches that are pinned to it, and so that a
                # slow push can still see that it lost.
                with suppress(FileNotFoundError):  # another collection was faster
                    if storage.modified_s(_manifest(folder, successor)) < now - self._grace_s:
                        storage.remove(_manifest(folder, expired))
                        reached("version-expired")
        set_aside = [name for name in storage.names("staging") if name.endswith(SET_ASIDE)]  # by collections that died
        named = self._named_digests()
        for name in storage.names("blobs") if named is not None else ():
            with suppress(FileNotFoundError):  # another collection was faster
                if name not in (named or ()) and storage.modified_s(f"blobs/{name}") < now - self._grace_s:
                    # Set aside first: a commit that named it in this very moment is seen afterwards.
                    set_aside.append(f"{name}.{uuid.uuid4().hex}{SET_ASIDE}")
                    storage.rename(f"blobs/{name}", f"staging/{set_aside[-1]}")
                    reached("blob-set-aside")
        if set_aside:
            self._restore_or_remove(set_aside)
        storage.sweep(now - UPLOAD_GRACE_S)

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
        # Before `is_current`: a run of that name made later has no such folder until it is pushed to itself.
        try:
            folder = self._storage.open_versions(_checked_run(run_id), role)
        except FileNotFoundError as error:
            raise _deleted(run_id) from error
        place = _Place(run_id, role, folder)
        numbers = self._kept_numbers(place)
        kept = self._intact(place, numbers)
        newest = numbers[-1] if numbers else 0
        if (committed := _repeated(kept, newest, role, digest, step, rewind)) is not None:
            return committed
        if role != "learner" and newest:
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
            is_first = self._create(_manifest(folder, version.version), version)
        except FileNotFoundError as error:
            raise _deleted(run_id) from error
        if is_first:
            return version
        # Lost by a hair. The winner may be a repeat of this very push.
        kept = self._intact(place, self._kept_numbers(place))
        if (committed := _repeated(kept, newest + 1, role, digest, step, rewind)) is not None:
            return committed
        if role != "learner":
            raise ReferenceFrozenError(
                f"run {run_id!r} was given another reference meanwhile; a reference never changes under a run"
            )
        raise PushConflictError(
            f"run {run_id!r} got learner version {newest + 1} from another push meanwhile; "
            "push again if these weights are still newer"
        )

    def _create(self, manifest: str, version: WeightsVersion) -> bool:
        """Creates the manifest whole and durable; False where it exists already.

        Raises:
            FileNotFoundError: the life of the run is over.
        """
        # Older gateways know no optional ones.
        stored = {name: value for name, value in asdict(version).items() if value is not None}
        return self._storage.create(manifest, json.dumps(stored).encode())

    def _found(self, find: Callable[[str], Path], digest: str) -> Path:
        with suppress(FileNotFoundError):
            return find(_checked(digest))
        if self._brought_back(digest):
            with suppress(FileNotFoundError):
                return find(digest)
        raise weights_not_found(digest)

    def _brought_back(self, digest: str) -> bool:
        """Undoes what a collection did that set a blob aside and died; tells whether one did."""
        blob = digest.removeprefix("sha256:")
        for name in self._storage.names("staging"):
            if name.startswith(blob) and name.endswith(SET_ASIDE):
                with suppress(FileNotFoundError):  # a collection that lives was faster
                    self._storage.rename(f"staging/{name}", f"blobs/{blob}")
                return self._storage.exists(blob_name(digest))
        return False

    def _restore_or_remove(self, set_aside: list[str]) -> None:
        named = self._named_digests()  # once for all of them: it reads every manifest
        for name in set_aside:
            blob = name.partition(".")[0]
            with suppress(FileNotFoundError):  # another collection was faster
                if (named is None or blob in named) and not self._storage.exists(f"blobs/{blob}"):
                    self._storage.rename(f"staging/{name}", f"blobs/{blob}")
                    reached("blob-restored")
                else:
                    self._storage.remove(f"staging/{name}")
                    reached("blob-removed")

    def _named_digests(self) -> set[str] | None:
        """Returns the digests, without "sha256:", of all versions with a manifest; None where one cannot be read."""
        named = set()
        for folder, versions in self._storage.all_versions(ROLES):
            place = _Place(versions.run_id, versions.role, folder)
            for number in _numbers_among(versions.names):
                try:
                    named |= {digest.removeprefix("sha256:") for digest in self._read(place, number).digests}
                except WeightsNotFoundError:
                    continue  # deleted since it was listed
                except InternalError as error:
                    logger.warning("no weights are removed from the store: %s", error)
                    return None
        return named

    def _intact(self, place: _Place, numbers: list[int]) -> list[WeightsVersion]:
        versions = []
        for number in numbers:
            try:
                versions.append(self._read(place, number))
            except WeightsNotFoundError:
                continue  # deleted since it was listed
            except InternalError as error:
                logger.warning("left out: %s", error)
        return versions

    def _read(self, place: _Place, number: int) -> WeightsVersion:
        run_id, role, folder = place
        try:
            version = parse_manifest(self._storage.read(_manifest(folder or "", number)), number)
        except FileNotFoundError as error:
            raise WeightsNotFoundError(f"run {run_id!r} has no {role} version {number} any more") from error
        except (ValueError, TypeError) as error:
            cure = "push newer weights" if role == "learner" else "create another run, since a reference never changes"
            raise InternalError(
                f"{role} version {number} of run {run_id!r} is damaged in the store ({error}); {cure}"
            ) from error
        return version

    def _kept_numbers(self, place: _Place) -> list[int]:
        return self._numbers(place)[-self._keep_versions :]

    def _numbers(self, place: _Place) -> list[int]:
        return [] if place.folder is None else _numbers_among(self._storage.names(place.folder))

    def _place(self, run_id: str, role: Role) -> _Place:
        return _Place(run_id, role, self._storage.find_versions(_checked_run(run_id), role))


def parse_manifest(content: bytes, number: int) -> WeightsVersion:
    """Returns the version that the content of a manifest describes.

    Raises:
        ValueError, TypeError: it describes none, or one that is not `number`.
    """
    version = WeightsVersion(**json.loads(content))
    if version.version != number or not all(map(_DIGEST.fullmatch, version.digests)):
        raise ValueError(f"it describes version {version.version} with digest {version.digest}")
    return version


def _checked(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise WeightsNotFoundError(f"digest is {digest[:80]!r}; give 'sha256:' and 64 hexadecimal digits")
    return digest


def _checked_run(run_id: str) -> str:
    if not RUN_ID.fullmatch(run_id):
        raise ValueError(f"run_id is {run_id!r}; it must match {RUN_ID.pattern}")
    return run_id


def _deleted(run_id: str) -> PushConflictError:
    return PushConflictError(f"run {run_id!r} was deleted while weights were pushed to it; create it and push again")


def _repeated(
    kept: list[WeightsVersion], newest: int, role: Role, digest: str, step: int, rewind: bool
) -> WeightsVersion | None:
    # Training that went back comes to the same weights again, and means them to be used again.
    is_ahead = role == "learner" and bool(kept) and step > kept[-1].step
    for version in reversed(kept):
        same = version.digest == digest and (role != "learner" or version.step == step)
        if same and (version.version == newest or not (rewind or is_ahead)):
            return version
    return None


def _numbers_among(names: list[str]) -> list[int]:
    return sorted(int(match[1]) for name in names if (match := _MANIFEST.fullmatch(name)))


def _manifest(folder: str, number: int) -> str:
    return f"{folder}/{number:08d}.json"
