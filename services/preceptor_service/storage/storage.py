"""`Storage`: what the stores of runs and weights need of the place where their files lie.

    blobs/<sha256>                       safetensors files, by content
    runs/<run_id>/run.json               the record of a run
    runs/<run_id>/…/<role>/<version>.json    one manifest per committed version; the place decides what lies between
    runs/<run_id>/…/ledger/<segment>         pieces of the run's ledger
    runs/<run_id>/…/bank/<operation>         the log of the run's memory bank, and snapshots of the bank
    runs/<run_id>/…/journal/<step>-<rank>    sub-batches that were handed out, of a co-trained run
    runs/<run_id>/…/answers/<blocks>         what is kept of them once they are trained on
    runs/<run_id>/…/reported/<piece>         metrics that its trainer reported
    staging/                             what is on its way in or out

Names are paths relative to the store. Called by `RunStore`, `WeightStore`, `LedgerStore`, `OpenBank`, `Journal` and
`ReportedMetrics`, which make every decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from preceptor.errors import InternalError

SET_ASIDE = ".set-aside"
"""Ends the names of blobs in `staging/` that a collection is about to remove; `sweep` leaves them alone."""


@dataclass(frozen=True)
class StoreHealth:
    """Whether the store can be used now.

    Attributes:
        is_writable: something could be written, read back and removed.
        free_bytes: what is left on its file system; None where there is no such limit.
    """

    is_writable: bool
    free_bytes: int | None


@dataclass(frozen=True)
class Versions:
    """What lies in the folder of one role of a run: the names of its manifests, in any order."""

    run_id: str
    role: str
    names: list[str]


class Storage(Protocol):
    """A directory or an object store. Safe for any number of threads and processes at once; every method blocks.

    What is written is durable once the call returns. `FileNotFoundError` says that something, or the life of a run
    that it belonged to, is gone; a full disk is `DiskFullError` or its `OSError`; what cannot be read or
    written otherwise, or reached, is `UnavailableError`: of an object store within a bounded time.
    """

    @property
    def staging(self) -> Path:
        """A directory on this machine for files that are going to be blobs."""
        ...

    def probe(self) -> StoreHealth:
        """Writes, reads back and removes something small. Never raises."""
        ...

    def clock_s(self) -> float:
        """Returns the time that `modified_s` is measured in, seconds since the epoch."""
        ...

    def run_ids(self) -> list[str]:
        """Returns the ids of all runs that have a record, sorted."""
        ...

    def record_tags(self) -> dict[str, str]:
        """Returns for each run that has a record what changes when there is another one of that name."""
        ...

    def has_record(self, run_id: str) -> bool:
        """Tells whether there is a record of the run."""
        ...

    def read_record(self, run_id: str) -> bytes:
        """Returns the record of the run."""
        ...

    def create_record(self, run_id: str, record: bytes) -> bool:
        """Begins a life of the run with a record, a JSON object, whole; False where it has one already."""
        ...

    def delete_run(self, run_id: str) -> None:
        """Ends the life of the run: first its record, at once, then all of its versions."""
        ...

    def open_versions(self, run_id: str, role: str) -> str:
        """Returns the folder for versions of the present life of the run, made where it is missing."""
        ...

    def find_versions(self, run_id: str, role: str) -> str | None:
        """Returns the same folder where there may be one, else None."""
        ...

    def delete_versions(self, run_id: str, roles: Sequence[str]) -> None:
        """Removes those folders of the run, oldest version first."""
        ...

    def all_versions(self, roles: Sequence[str]) -> list[tuple[str, Versions]]:
        """Returns the folders of those roles of every run, each with what lies in it."""
        ...

    def names(self, folder: str) -> list[str]:
        """Returns the names in `folder`, in any order; none where there is no folder."""
        ...

    def read(self, name: str) -> bytes:
        """Returns the content of a manifest, which never changes."""
        ...

    def read_once(self, name: str) -> bytes:
        """Returns the same of any other file, too large to be held in memory for the next time."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Creates a manifest or the like whole; False where the name is taken. The store's one choice."""
        ...

    def exists(self, name: str) -> bool:
        """Tells whether there is something of that name."""
        ...

    def modified_s(self, name: str) -> float:
        """Returns when it was written, or touched, last."""
        ...

    def rename(self, name: str, to: str) -> None:
        """Moves a blob within the store. Between the two, both names may be there, never none."""
        ...

    def remove(self, name: str) -> None:
        """Removes it; that it is gone already may pass unnoticed."""
        ...

    def put_blob(self, file: Path, digest: str) -> None:
        """Makes a file in `staging` the blob of that digest, in place of the one that may be there."""
        ...

    def touch_blob(self, digest: str) -> int:
        """Makes a blob young, and returns its size in bytes."""
        ...

    def blob(self, digest: str) -> Path:
        """Returns a file on this machine with the weights; fetched, where they lie elsewhere."""
        ...

    def verified_blob(self, digest: str) -> Path:
        """Returns such a file whose checksum was compared just now.

        Raises:
            InternalError: the weights are damaged.
        """
        ...

    def sweep(self, before_s: float) -> None:
        """Removes from `staging/` what nobody wrote to since then, except what was set aside."""
        ...


def blob_name(digest: str) -> str:
    """Returns the name of the blob with that digest."""
    return f"blobs/{digest.removeprefix('sha256:')}"


def damaged(digest: str, found: str) -> InternalError:
    """Returns what is said of a blob whose SHA-256 is `found`."""
    return InternalError(
        f"weights {digest} are damaged in the store: the file has the SHA-256 {found}; push them again"
    )
