"""`PageCache`: what a power failure would take from a directory, since killing a process takes nothing.

The kernel keeps what a dead process wrote; only a failing machine loses what was never synced. This models such a
failure: content is durable once its file was synced, a name once its directory was. Of everything else each change is
lost or not, by chance, whatever the order in which they were made; a file that moves arrives or stays, as on every
journalling file system. Not modelled: a disk that lies about a sync.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
from collections.abc import Callable
from pathlib import Path


class PageCache:
    """Watches this process, whose every other change below `root` is durable already.

    Args:
        root: the directory.
        limbo: an empty directory on the same file system, for hard links to what may come back.
        rng: decides what reached the disk by itself; at one time in three nothing does.
    """

    def __init__(self, root: Path, limbo: Path, rng: random.Random) -> None:
        self._root = root
        self._limbo = limbo
        self._rng = rng
        self._names: dict[Path, dict[str, int]] = {}  # of each directory, as on the disk
        self._durable_bytes: dict[int, int] = {}  # by inode
        self._held: list[int] = []  # descriptors: inode numbers must not be used again
        self._fsync = os.fsync

    def watch(self) -> None:
        """Takes what there is for durable, and notes every `os.fsync` from now on."""
        for directory, _, files in os.walk(self._root):
            for file in files:
                status = (Path(directory) / file).stat()
                self._durable_bytes[status.st_ino] = status.st_size
            self._note_names(Path(directory))
        os.fsync = self._noted_fsync  # type: ignore[assignment]

    def fail(self) -> None:
        """Takes from the directory what was not synced, and kills this process."""
        keep_share = self._rng.choice((0.0, 0.5, 0.9))
        came: dict[int, bool] = {}

        def reached_the_disk(inode: int) -> bool:
            return came.setdefault(inode, self._rng.random() < keep_share)

        for directory in [Path(found) for found, _, _ in os.walk(self._root)]:
            if directory.exists():
                self._lose_names(directory, reached_the_disk)
        for found, _, files in os.walk(self._root):
            for file in sorted(files):
                self._lose_content(Path(found) / file, keep_share)
        os.kill(os.getpid(), signal.SIGKILL)

    def _noted_fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._note_names(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        else:
            self._durable_bytes[status.st_ino] = status.st_size
            self._held.append(os.dup(descriptor))

    def _note_names(self, directory: Path) -> None:
        if directory != self._root and self._root not in directory.parents:
            return
        self._names[directory] = found = {}
        for path in directory.iterdir():
            inode = found[path.name] = path.stat().st_ino
            link = self._limbo / str(inode)
            if path.is_file() and not link.exists():
                os.link(path, link)

    def _lose_names(self, directory: Path, reached_the_disk: Callable[[int], bool]) -> None:
        durable = self._names.get(directory, {})
        present = {path.name: path.stat().st_ino for path in directory.iterdir()}
        for name in sorted(durable.keys() | present.keys()):
            before, after = durable.get(name), present.get(name)
            if before == after or reached_the_disk(after or before or 0):
                continue
            path = directory / name
            if after is not None:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if before is not None and (self._limbo / str(before)).exists():
                os.link(self._limbo / str(before), path)

    def _lose_content(self, path: Path, keep_share: float) -> None:
        status = path.stat()
        durable_bytes = self._durable_bytes.get(status.st_ino, 0)
        if status.st_size <= durable_bytes or self._rng.random() < keep_share:
            return
        os.truncate(path, self._rng.randint(durable_bytes, status.st_size - 1))
        if self._rng.random() < 0.5:
            os.truncate(path, status.st_size)  # as long as it was, of zeros
