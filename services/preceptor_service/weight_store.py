"""`WeightStore`: the durable, versioned weights of every run, in a directory or an object store.

Gateways write, scorers read, all at once and without a lock server: the one decision, which push becomes
version n + 1, is the exclusive creation of that version's manifest. What is needed of the place where the
files lie is `Storage`; every decision is made here.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from pathlib import Path

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
from preceptor.quoting import quoted
from preceptor_service.config import WeightsConfig
from preceptor_service.storage import SET_ASIDE, Storage, StoreHealth, as_storage, blob_name, open_storage
from preceptor_service.weight_collection import collect
from preceptor_service.weight_staging import Staged, disk_errors
from preceptor_service.weight_versions import (
    DIGEST,
    ROLES,
    Place,
    Role,
    WeightsVersion,
    create_manifest,
    numbers_among,
    read_manifest,
)

RUN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

logger = logging.getLogger(__name__)


def weights_not_found(digest: str) -> WeightsNotFoundError:
    """Returns what is said of weights that are not there, and of those that are none of the caller's business."""
    return WeightsNotFoundError(f"the store has no weights {digest}; push them")


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
                if create_manifest(self._storage, folder, version):
                    return version
            except FileNotFoundError as error:
                raise _deleted(run_id) from error
        return read_manifest(self._storage, Place(run_id, "learner", folder), version.version)

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
        return read_manifest(self._storage, place, numbers[-1]) if numbers else None

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
        return read_manifest(self._storage, place, version)

    def versions(self, run_id: str, role: Role) -> tuple[WeightsVersion, ...]:
        """Returns the committed versions that are kept and intact, oldest first."""
        place = self._place(run_id, role)
        return tuple(self._intact(place, self._kept_numbers(place)))

    def heads(self, run_ids: Set[str]) -> dict[str, dict[str, WeightsVersion]]:
        """Returns by run and role the newest version that is kept and intact, by one listing of the store."""
        heads: dict[str, dict[str, WeightsVersion]] = {}
        for place, numbers in self._kept_by(run_ids):
            newest = next(
                (intact[0] for number in reversed(numbers) if (intact := self._intact(place, [number]))), None
            )
            if newest is not None:
                heads.setdefault(place.run_id, {})[place.role] = newest
        return heads

    def is_held(self, digest: str, run_ids: Set[str]) -> bool:
        """Tells whether one of these runs keeps a version with that digest, by one listing of the store."""
        kept = (version for place, numbers in self._kept_by(run_ids) for version in self._intact(place, numbers))
        return any(version.digest == digest for version in kept)

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
            collect(self._storage, self._keep_versions, self._grace_s)
        except (UnavailableError, DiskFullError) as error:
            logger.warning("not everything that expired was removed from the store: %s", error)

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
        place = Place(run_id, role, folder)
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
            is_first = create_manifest(self._storage, folder, version)
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

    def _intact(self, place: Place, numbers: list[int]) -> list[WeightsVersion]:
        versions = []
        for number in numbers:
            try:
                versions.append(read_manifest(self._storage, place, number))
            except WeightsNotFoundError:
                continue  # deleted since it was listed
            except InternalError as error:
                logger.warning("left out: %s", error)
        return versions

    def _kept_by(self, run_ids: Set[str]) -> Iterator[tuple[Place, list[int]]]:
        """Yields where those runs have versions, and the numbers of those that are kept."""
        for folder, found in self._storage.all_versions(ROLES) if run_ids else ():
            if found.run_id in run_ids:
                yield Place(found.run_id, found.role, folder), numbers_among(found.names)[-self._keep_versions :]

    def _kept_numbers(self, place: Place) -> list[int]:
        return self._numbers(place)[-self._keep_versions :]

    def _numbers(self, place: Place) -> list[int]:
        return [] if place.folder is None else numbers_among(self._storage.names(place.folder))

    def _place(self, run_id: str, role: Role) -> Place:
        return Place(run_id, role, self._storage.find_versions(_checked_run(run_id), role))


def _checked(digest: str) -> str:
    if not DIGEST.fullmatch(digest):
        raise WeightsNotFoundError(f"digest is {quoted(digest)}; give 'sha256:' and 64 hexadecimal digits")
    return digest


def _checked_run(run_id: str) -> str:
    if not RUN_ID.fullmatch(run_id):
        raise ValueError(f"run_id is {quoted(run_id)}; it must match {RUN_ID.pattern}")
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
