"""Mistakes that somebody could make in how weights become durable, by name; `atomic-push` has to see each.

Each changes the modules of this process, so only a process that is thrown away may have one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from preceptor_service import weight_collection
from preceptor_service.failpoints import reached
from preceptor_service.storage.directory import DirectoryStorage
from preceptor_service.weight_staging import sync_directory


def _publish_before_fsync() -> None:
    _fsync_only(stat.S_ISDIR)


def _leave_names_to_chance() -> None:
    _fsync_only(stat.S_ISREG)


def _fsync_only(is_kind: Callable[[int], bool]) -> None:
    fsync = os.fsync

    def lazy(descriptor: int) -> None:
        if is_kind(os.fstat(descriptor).st_mode):
            fsync(descriptor)

    os.fsync = lazy  # type: ignore[assignment]


def _name_weights_before_they_are_there() -> None:
    put = DirectoryStorage.put_blob
    asked: set[Path] = set()

    def put_blob(self: DirectoryStorage, file: Path, digest: str) -> None:
        if file in asked:  # the second time is after the manifest, because the first did nothing
            put(self, file, digest)
        asked.add(file)

    DirectoryStorage.put_blob = put_blob  # type: ignore[method-assign]


def _write_manifests_in_place() -> None:
    def create(self: DirectoryStorage, name: str, content: bytes) -> bool:
        path = self._root / name
        with path.open("xb") as file:
            file.write(content[:20])
            file.flush()
            reached("manifest-named")
            file.write(content[20:])
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path.parent)
        reached("manifest-durable")
        return True

    DirectoryStorage.create = create  # type: ignore[method-assign]


def _forget_what_is_named() -> None:
    weight_collection._named_digests = lambda storage: set()


PUSH_BUGS: Mapping[str, Callable[[], None]] = {
    "publish before fsync": _publish_before_fsync,
    "leave names to chance": _leave_names_to_chance,
    "name weights before they are there": _name_weights_before_they_are_there,
    "write manifests in place": _write_manifests_in_place,
    "collect what is named": _forget_what_is_named,
}
