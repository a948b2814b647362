"""The durable records of runs: one JSON file each, created once, never changed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from preceptor.errors import InternalError, RunExistsError, RunNotFoundError, UnavailableError
from preceptor.runs import RunSpec, spec_from_proto, spec_to_proto
from preceptor.v1 import run_pb2
from preceptor_service.weight_staging import disk_errors, make_directory, sync_directory


@dataclass(frozen=True)
class RunRecord:
    """What was fixed when a run was created.

    Attributes:
        spec: the trainer's settings.
        create_time_s: seconds since the epoch.
        micro_batch_rows: rows of one forward pass, from the service's configuration of that day.
        owner: identity of the creator; None where the service knew no callers.
    """

    spec: RunSpec
    create_time_s: float
    micro_batch_rows: int
    owner: str | None = None


class RunStore:
    """Run records below `root/runs/`, shared by all gateways on one file system.

    Safe for several processes: a record appears whole, by exclusive creation. Blocking.
    """

    def __init__(self, root: Path) -> None:
        self._runs = root / "runs"
        self._staging = root / "staging"
        for directory in (self._runs, self._staging):
            make_directory(directory)

    def create(self, record: RunRecord) -> RunRecord:
        """Stores `record`, and returns the stored one: an earlier record of the same spec is kept.

        Raises:
            RunExistsError: the run exists with another spec.
            DiskFullError: the disk is full.
            UnavailableError: the run was deleted in this very moment.
        """
        path = self._path(record.spec.run_id)
        try:
            with disk_errors():
                self._link(record, path)
        except FileNotFoundError as error:
            raise UnavailableError(f"run {record.spec.run_id!r} was deleted while it was created; try again") from error
        except FileExistsError:
            existing = self.read(record.spec.run_id)
            if existing.spec != record.spec:
                raise RunExistsError(_difference(existing.spec, record.spec)) from None
            return existing
        return record

    def read(self, run_id: str) -> RunRecord:
        """Returns the record of `run_id`.

        Raises:
            RunNotFoundError: there is none.
            InternalError: its file is damaged.
        """
        try:
            return _from_json(json.loads(self._path(run_id).read_text()))
        except (FileNotFoundError, NotADirectoryError):
            raise RunNotFoundError(f"there is no run {run_id!r}; create it first") from None
        except (OSError, ValueError, KeyError, TypeError, json_format.ParseError) as error:
            raise InternalError(f"the record of run {run_id!r} is damaged; delete the run") from error

    def exists(self, run_id: str) -> bool:
        """Tells whether there is a record of `run_id`."""
        return self._path(run_id).exists()

    def holds(self, record: RunRecord) -> bool:
        """Tells whether `record` is the present life of its run: neither deleted, nor another of its name."""
        try:
            return self.read(record.spec.run_id) == record
        except RunNotFoundError:
            return False

    def list(self) -> list[str]:
        """Returns the ids of all runs, sorted."""
        return sorted(path.parent.name for path in self._runs.glob("*/run.json"))

    def delete(self, run_id: str) -> None:
        """Deletes the record and everything else below the run's directory, at once.

        Raises:
            RunNotFoundError: there is no such run.
        """
        doomed = self._staging / f"{uuid.uuid4().hex}.run"
        try:
            self._path(run_id).stat()
            self._path(run_id).parent.rename(doomed)
        except (FileNotFoundError, NotADirectoryError):
            raise RunNotFoundError(f"there is no run {run_id!r}") from None
        sync_directory(self._runs)
        shutil.rmtree(doomed, ignore_errors=True)

    def _link(self, record: RunRecord, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".run-", suffix=".json") as scratch:
            json.dump(_to_json(record), scratch, indent=1, sort_keys=True)
            scratch.flush()
            os.fsync(scratch.fileno())
            os.link(scratch.name, path)
        sync_directory(path.parent)
        sync_directory(self._runs)

    def _path(self, run_id: str) -> Path:
        return self._runs / run_id / "run.json"


def _to_json(record: RunRecord) -> dict[str, object]:
    return {
        "spec": json_format.MessageToDict(spec_to_proto(record.spec)),
        "create_time_s": record.create_time_s,
        "micro_batch_rows": record.micro_batch_rows,
        "owner": record.owner,
    }


def _from_json(stored: dict[str, Any]) -> RunRecord:
    spec = spec_from_proto(json_format.ParseDict(stored["spec"], run_pb2.RunSpec()))
    owner = stored.get("owner")
    return RunRecord(
        spec,
        float(stored["create_time_s"]),
        int(stored["micro_batch_rows"]),
        None if owner is None else str(owner),
    )


def _difference(stored: RunSpec, asked: RunSpec) -> str:
    changed = ", ".join(
        f"{name} is {value!r}, asked for {getattr(asked, name)!r}"
        for name, value in vars(stored).items()
        if value != getattr(asked, name)
    )
    return f"run {stored.run_id!r} exists with other settings: {changed}; choose another run_id or delete the run"
