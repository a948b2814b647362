"""`OpenBank`: a run's bank in the store, as a log that any gateway may append to. Called by `MemoryBanks`.

    runs/<run_id>/…/bank/<number>-<life>.operation     what was done, with its outcome
    runs/<run_id>/…/bank/<number>-<life>.snapshot      the bank after that many operations
    runs/<run_id>/…/bank/<number>-<life>.pack          operations up to that one that are only needed for repeats

Operation n is whoever's creates that name first (ADR 5), so several gateways cannot do different things to one bank,
and one that is killed before that name is there did nothing. See ADR 7.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, NamedTuple

from preceptor.errors import DeadlineExceededError, InternalError, PreceptorError, RunNotFoundError
from preceptor.quoting import brief
from preceptor.runs import MemoryBank
from preceptor_service.config import MemoryBankConfig
from preceptor_service.memory_bank.bank import Bank, Done, KeepLimits, Key, Operation, OperationT, done, forgotten
from preceptor_service.memory_bank.operations import (
    DamagedError,
    operation_from_bytes,
    operation_to_bytes,
    pack_from_bytes,
    pack_to_bytes,
    snapshot_from_bytes,
    snapshot_to_bytes,
)
from preceptor_service.run_store import RunRecord, RunStore
from preceptor_service.storage import Storage
from preceptor_service.weight_staging import disk_errors

_ROLE = "bank"
_NAME = re.compile(r"(\d{12})-([0-9a-f]{8})\.(operation|snapshot|pack)")
_TRIES = 5
_SNAPSHOT_EVERY = 128
_GRACE_S = 120.0
"""How long an operation stays after a snapshot that it is part of. Whoever knows the bank as it was less than half of
that ago can rely on it that what was done since is still there, and that a name it creates was never taken."""

logger = logging.getLogger(__name__)


class _Listed(NamedTuple):
    """Numbers of what lies in the folder, rising."""

    operations: list[int]
    snapshots: list[int]
    packs: list[int]


class Answer(NamedTuple, Generic[OperationT]):
    """The operation of that `number`, which was done; `is_new` where it was done just now."""

    operation: OperationT
    is_new: bool
    number: int


class OpenBank:
    """A run's bank, as one gateway knows it. Blocking; for one thread at a time.

    Args:
        storage: of the store.
        record: of the run, which has a memory bank.
        settings: how much is kept.
        grace_s: how long operations stay that a snapshot has.
        snapshot_every: operations from one snapshot to the next.
        clock: in seconds; never goes back.
    """

    def __init__(
        self,
        storage: Storage,
        record: RunRecord,
        settings: MemoryBankConfig,
        grace_s: float = _GRACE_S,
        snapshot_every: int = _SNAPSHOT_EVERY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if record.spec.memory_bank is None:
            raise ValueError(f"run {record.spec.run_id!r} has no memory bank")
        self._storage = storage
        self._runs = RunStore(storage)
        self._record = record
        self._bank_settings: MemoryBank = record.spec.memory_bank
        self._limits = KeepLimits(settings.keep_operations, settings.keep_bytes)
        self._grace_s = grace_s
        self._snapshot_every = snapshot_every
        self._clock = clock
        self._life = hashlib.blake2b(repr(record.create_time_s).encode(), digest_size=4).hexdigest()
        self._folder: str | None = None
        self._bank = Bank()
        self._seen_at = -float("inf")
        self._snapshot = 0
        self._snapshot_at = -float("inf")

    @property
    def bank(self) -> Bank:
        """The bank as it was known last."""
        return self._bank

    @property
    def is_snapshot_due(self) -> bool:
        """Whether so much was done since the last snapshot that another pays; not more often than a sixth of grace."""
        return (
            self._bank.number - self._snapshot >= self._snapshot_every
            and self._clock() - self._snapshot_at >= self._grace_s / 6
        )

    def find(self, key: Key, identity: str, kind: type[OperationT]) -> OperationT | None:
        """Returns the operation of that name, of the class `kind`, where this gateway knows that it was done.

        Raises:
            StepExistsError: it was asked for something else.
            StepForgottenError: it may have been done; that is forgotten.
            UnavailableError, InternalError: the store cannot be used, or holds something damaged.
        """
        self._open()
        return self._recorded(key, identity, kind)

    def operate(
        self,
        key: Key,
        identity: str,
        kind: type[OperationT],
        work_out: Callable[[Bank], Done[OperationT]],
        deadline: float,
    ) -> Answer[OperationT]:
        """Does one operation once, durably, and returns it; or what it was when it was done before.

        Args:
            key: names it.
            identity: what it was asked for.
            kind: its class.
            work_out: from the newest bank to what is done to it; asked again where another gateway was faster. What it
                raises is raised, and nothing was done.
            deadline: of the clock, after which another try is no longer made.

        Raises:
            StepExistsError, StepForgottenError, UnavailableError, InternalError: as `find` does.
            RunNotFoundError: the run was deleted.
            DiskFullError: the disk is full; nothing was done.
            DeadlineExceededError: other gateways were faster again and again.
        """
        while True:
            self._open()
            recorded = self._recorded(key, identity, kind)
            if recorded is not None:
                return Answer(recorded, False, self._bank.records[key].number)
            try:
                result = work_out(self._bank)
            except PreceptorError:
                if self._follow():  # of the newest bank it may be true no longer
                    continue
                raise
            if self._append(result):
                return Answer(result.operation, True, self._bank.number)
            if self._clock() > deadline:
                raise DeadlineExceededError(
                    f"other gateways changed the bank of run {self._run_id!r} again and again; repeat the step"
                )
            self._follow()

    def write_snapshot(self) -> None:
        """Writes the bank as it is, and removes what nothing needs any more. Logs where that fails; it can wait."""
        bank, self._snapshot_at = self._bank, self._clock()
        try:
            with disk_errors():
                self._storage.create(self._path(bank.number, "snapshot"), snapshot_to_bytes(bank))
            self._snapshot = bank.number
            self._collect(bank)
        except FileNotFoundError:
            return  # the run is gone, and its bank with it
        except (PreceptorError, OSError) as error:
            logger.warning("no snapshot of the bank of run %s now; it is tried again: %s", self._run_id, error)

    @property
    def _run_id(self) -> str:
        return self._record.spec.run_id

    def _recorded(self, key: Key, identity: str, kind: type[OperationT]) -> OperationT | None:
        record = self._bank.find(key, identity)
        if record is None:
            return None
        try:
            operation, _ = self._read(record.number)
        except FileNotFoundError:
            packed = self._read_packed(record.number)
            if packed is None:  # a gateway that keeps less removed it
                raise forgotten(key, key.step) from None
            operation = packed
        if not isinstance(operation, kind) or operation.key != key:
            raise self._damaged(f"has another operation {record.number}")
        return operation

    def _append(self, result: Done[OperationT]) -> bool:
        """Makes it the next operation; False where there is another."""
        number, began = self._bank.number + 1, self._clock()
        content = operation_to_bytes(result.operation)
        self._require_life()
        try:
            with disk_errors():
                is_first = self._storage.create(self._path(number, "operation"), content)
        except FileNotFoundError as error:
            raise self._gone() from error
        if not is_first:
            return False
        if self._clock() - self._seen_at > self._grace_s / 2 and self._is_passed(number):
            # It took so long that the others did, snapshot and removed operation `number` meanwhile; nobody reads ours.
            self._storage.remove(self._path(number, "operation"))
            self._seen_at = -float("inf")
            self._open()
            return False
        self._bank = self._bank.after(result.operation, result.rows, len(content), self._limits)
        self._seen_at = began
        return True

    def _open(self) -> None:
        """Looks at what is there, unless the bank was known to be the newest less than a quarter of grace ago."""
        if self._clock() - self._seen_at < self._grace_s / 4:
            return
        self._require_life()
        try:
            self._folder = self._storage.open_versions(self._run_id, _ROLE)
        except FileNotFoundError as error:
            raise self._gone() from error
        for _ in range(_TRIES):
            listed_at = self._clock()
            with suppress(FileNotFoundError):  # removed since it was listed: others went on
                self._catch_up(self._listed())
                self._seen_at = listed_at
                return
        raise self._damaged(f"lacks operation {self._bank.number + 1}")

    def _catch_up(self, listed: _Listed) -> None:
        """Goes on from the newest snapshot, or from what is known where there is no newer one."""
        newest = max((*listed.operations, *listed.snapshots), default=0)
        for number in reversed(listed.snapshots):
            if number <= self._bank.number or self._restarted(number):
                break
        while self._bank.number < newest:
            self._fold(self._bank.number + 1)

    def _restarted(self, number: int) -> bool:
        """Begins at a snapshot; False where it is damaged."""
        try:
            self._bank = snapshot_from_bytes(self._storage.read_once(self._path(number, "snapshot")))
        except DamagedError as error:
            logger.warning("snapshot %d of the bank of run %s is damaged: %s", number, self._run_id, error)
            return False
        self._snapshot = number
        return True

    def _follow(self) -> bool:
        """Does what other gateways did since; False where that is nothing."""
        before = self._bank.number
        with suppress(FileNotFoundError):
            while True:
                self._fold(self._bank.number + 1)
        return self._bank.number > before

    def _fold(self, number: int) -> None:
        operation, total_bytes = self._read(number)
        try:
            rows = done(self._bank, operation, self._bank_settings)
        except (ValueError, PreceptorError) as error:
            raise self._damaged(f"does not fit together at operation {number} ({brief(error)})") from error
        self._bank = self._bank.after(operation, rows, total_bytes, self._limits)

    def _read(self, number: int) -> tuple[Operation, int]:
        content = self._storage.read_once(self._path(number, "operation"))
        return self._parsed(number, content), len(content)

    def _read_packed(self, number: int) -> Operation | None:
        """Returns an operation from the pack that has it; None where none has."""
        for pack in self._listed().packs:
            if pack < number:
                continue
            try:
                found = pack_from_bytes(self._storage.read_once(self._path(pack, "pack"))).get(number)
            except FileNotFoundError:
                continue
            except DamagedError as error:
                raise self._damaged(f"has a damaged pack {pack} ({brief(error)})") from error
            if found is not None:
                return self._parsed(number, found)
        return None

    def _parsed(self, number: int, content: bytes) -> Operation:
        try:
            return operation_from_bytes(content)
        except DamagedError as error:
            raise self._damaged(f"has a damaged operation {number} ({brief(error)})") from error

    def _collect(self, bank: Bank) -> None:
        """Removes what comes before the last snapshot but one that is older than grace; packs the operations first.

        So one damaged snapshot loses nothing. Packed, because few large objects are quicker to list than many small
        ones; a pack is there as long as one of its answers is remembered.
        """
        listed, before_s = self._listed(), self._storage.clock_s() - self._grace_s
        base, has_later = 0, False
        for number in reversed(listed.snapshots):
            with suppress(FileNotFoundError):  # another gateway was faster
                if self._storage.modified_s(self._path(number, "snapshot")) < before_s:
                    if has_later:
                        base = number
                        break
                    has_later = True
        for number in listed.snapshots:
            if number < base:
                self._remove(number, "snapshot")
        settled = [number for number in listed.operations if number <= base]
        self._pack([number for number in settled if number >= bank.first_record])
        for number in settled:  # in rising order: where one is there, so are those after it
            self._remove(number, "operation")
        for number in listed.packs:
            if number < bank.first_record:
                self._remove(number, "pack")

    def _pack(self, numbers: list[int]) -> None:
        operations: dict[int, bytes] = {}
        for number in numbers:
            with suppress(FileNotFoundError):  # another gateway packed it
                operations[number] = self._storage.read_once(self._path(number, "operation"))
        if operations:
            with disk_errors():
                self._storage.create(self._path(max(operations), "pack"), pack_to_bytes(operations))

    def _remove(self, number: int, kind: str) -> None:
        with suppress(FileNotFoundError):  # another gateway was faster
            self._storage.remove(self._path(number, kind))

    def _is_passed(self, number: int) -> bool:
        return any(snapshot >= number for snapshot in self._listed().snapshots)

    def _listed(self) -> _Listed:
        found = [
            match
            for name in self._storage.names(self._folder or "")
            if (match := _NAME.fullmatch(name)) and match[2] == self._life
        ]
        kinds = ("operation", "snapshot", "pack")
        return _Listed(*(sorted(int(match[1]) for match in found if match[3] == kind) for kind in kinds))

    def _path(self, number: int, kind: str) -> str:
        return f"{self._folder}/{number:012d}-{self._life}.{kind}"

    def _require_life(self) -> None:
        if not self._runs.holds(self._record):
            raise self._gone()

    def _gone(self) -> RunNotFoundError:
        return RunNotFoundError(f"run {self._run_id!r} was deleted; create it again")

    def _damaged(self, how: str) -> InternalError:
        return InternalError(
            f"the bank of run {self._run_id!r} {how} in the store; selection goes on, for a bank create another run"
        )
