"""Claims: which process does what, so that the same command started twice shares the work. By `flock`."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def claimed(path: Path, *, waits: bool) -> Iterator[bool]:
    """Holds the lock of `path` meanwhile, and yields whether it got it. A process that dies lets go.

    Args:
        path: of the lock's file, which stays.
        waits: for another process that holds it, as long as that takes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
