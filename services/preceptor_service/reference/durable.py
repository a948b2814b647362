"""Outputs of jobs: one process at a time, files that appear whole, and never over something else."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from preceptor_service.reference.errors import JobError
from preceptor_service.weight_staging import make_directory, sync_directory

PARTIAL = ".partial"
_SHOWN_CHARACTERS = 80


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Makes a directory where it is missing, and keeps other processes out of it.

    Raises:
        JobError: another process is in it, or it cannot be made.
    """
    lock = -1
    try:
        make_directory(directory)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if lock >= 0:
            os.close(lock)
        if isinstance(error, BlockingIOError):
            raise JobError(f"another process works in {directory}; wait for it") from error
        raise JobError(f"{directory} cannot be written to: {error.strerror}") from error
    try:
        yield
    finally:
        os.close(lock)


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yields a hidden file beside `path` to write; it takes its name, durably, once it is whole.

    Raises:
        JobError: the disk is full, or otherwise does not take it.
    """
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(path)
        sync_directory(path.parent)
    except (OSError, SafetensorError) as error:
        raise JobError(f"{path} cannot be written: {error}; free space and start again, it goes on") from error


def refuse_other(place: Path, kind: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Compares what an output was made from with what it would be made from now.

    Raises:
        JobError: naming the first difference.
    """
    for name in [*there, *(name for name in here if name not in there)]:
        if there.get(name) != here.get(name):
            raise JobError(
                f"{place} holds {kind}: {name} is {_shown(there.get(name))} there and {_shown(here.get(name))} here; "
                "name another output"
            )


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
