"""The durable records of runs: one JSON file each, created once, never changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from preceptor.errors import InternalError, RunExistsError, RunNotFoundError, UnavailableError
from preceptor.quoting import quoted, shortened
from preceptor.runs import RunSpec, spec_from_proto, spec_to_proto
from preceptor.v1 import run_pb2
from preceptor_service.config import WeightsConfig
from preceptor_service.storage import Storage, as_storage, open_storage
from preceptor_service.weight_staging import disk_errors


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
    """Run records, shared by all gateways.

    Safe for several processes: a record appears whole, by exclusive creation. Blocking; every method raises
    `UnavailableError` where an object store cannot be reached.

    Args:
        root: a directory, made where it is missing, or an open storage.
    """

    def __init__(self, root: Path | Storage) -> None:
        self._storage = as_storage(root)
        self._read_before: dict[str, tuple[str, RunRecord]] = {}  # by run: the tag of its record, the record

    @classmethod
    def open(cls, settings: WeightsConfig) -> RunStore:
        """Returns the store that `settings` describe."""
        return cls(open_storage(settings))

    def create(self, record: RunRecord) -> RunRecord:
        """Stores `record`, and returns the stored one: an earlier record of the same spec is kept.

        Raises:
            RunExistsError: the run exists with another spec.
            DiskFullError: the disk is full.
            UnavailableError: the run was deleted in this very moment.
        """
        run_id = record.spec.run_id
        try:
            with disk_errors():
                is_first = self._storage.create_record(run_id, _to_json(record))
        except FileNotFoundError as error:
            raise UnavailableError(f"run {run_id!r} was deleted while it was created; try again") from error
        if is_first:
            return record
        existing = self.read(run_id)
        if existing.spec != record.spec:
            raise RunExistsError(_difference(existing.spec, record.spec))
        return existing

    def read(self, run_id: str) -> RunRecord:
        """Returns the record of `run_id`.

        Raises:
            RunNotFoundError: there is none.
            UnavailableError: the store cannot be read just now.
            InternalError: its file is damaged.
        """
        try:
            return parse_record(self._storage.read_record(run_id))
        except FileNotFoundError:
            raise RunNotFoundError(f"there is no run {run_id!r}; create it first") from None
        except (ValueError, KeyError, TypeError, json_format.ParseError) as error:
            raise InternalError(f"the record of run {run_id!r} is damaged; delete the run") from error

    def exists(self, run_id: str) -> bool:
        """Tells whether there is a record of `run_id`."""
        return self._storage.has_record(run_id)

    def holds(self, record: RunRecord) -> bool:
        """Tells whether `record` is the present life of its run: neither deleted, nor another of its name."""
        try:
            return self.read(record.spec.run_id) == record
        except RunNotFoundError:
            return False

    def list(self) -> list[str]:
        """Returns the ids of all runs, sorted."""
        return self._storage.run_ids()

    def records(self) -> Sequence[RunRecord]:
        """Returns the records of all runs, by run id; a damaged one is left out.

        Costs one listing, and reading what was not read before; holds all of them in memory.
        """
        tags, before = self._storage.record_tags(), self._read_before
        found = {
            run_id: before[run_id] for run_id, tag in tags.items() if run_id in before and before[run_id][0] == tag
        }
        for run_id in tags.keys() - found.keys():
            with suppress(RunNotFoundError, InternalError):
                found[run_id] = tags[run_id], self.read(run_id)
        self._read_before = found
        return [found[run_id][1] for run_id in sorted(found)]

    def delete(self, run_id: str) -> None:
        """Deletes the record and everything else of this life of the run.

        Raises:
            RunNotFoundError: there is no such run.
        """
        try:
            self._storage.delete_run(run_id)
        except FileNotFoundError:
            raise RunNotFoundError(f"there is no run {run_id!r}") from None


def _to_json(record: RunRecord) -> bytes:
    stored = {
        "spec": json_format.MessageToDict(spec_to_proto(record.spec)),
        "create_time_s": record.create_time_s,
        "micro_batch_rows": record.micro_batch_rows,
        "owner": record.owner,
    }
    return json.dumps(stored, indent=1, sort_keys=True).encode()


def parse_record(content: bytes) -> RunRecord:
    """Returns the record that was stored as `content`.

    Raises:
        ValueError, KeyError, TypeError, json_format.ParseError: it is none.
    """
    stored: dict[str, Any] = json.loads(content)
    spec = spec_from_proto(json_format.ParseDict(stored["spec"], run_pb2.RunSpec()))
    owner = stored.get("owner")
    return RunRecord(
        spec,
        float(stored["create_time_s"]),
        int(stored["micro_batch_rows"]),
        None if owner is None else str(owner),
    )


def _difference(stored: RunSpec, asked: RunSpec) -> str:
    before, after = _settings(stored), _settings(asked)
    changed = ", ".join(
        f"{name} is {_value(before, name)}, asked for {_value(after, name)}"
        for name in {**before, **after}
        if name not in before or name not in after or before[name] != after[name]
    )
    return f"run {stored.run_id!r} exists with other settings: {changed}; choose another run_id or delete the run"


def _settings(spec: RunSpec) -> dict[str, object]:
    """Returns every setting by name, those of a model and the like one by one."""
    settings: dict[str, object] = {}
    for name, value in vars(spec).items():
        inner = vars(value) if is_dataclass(value) else value
        settings |= (
            {f"{name}.{shortened(one)}": each for one, each in inner.items()}
            if isinstance(inner, Mapping)
            else {name: value}
        )
    return settings


def _value(settings: Mapping[str, object], name: str) -> str:
    return quoted(settings[name]) if name in settings else "not given"
