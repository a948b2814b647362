"""The places that a store can lie in, for tests that must hold in each of them."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from preceptor_service.config import WeightsConfig
from preceptor_service.storage import Storage, open_storage

if TYPE_CHECKING:
    from tests.s3_server import S3Server


class Place(Protocol):
    """An empty store, seen from behind: what lies there, whatever the service says."""

    settings: WeightsConfig

    def open(self) -> Storage:
        """Opens it anew, as another process would."""
        ...

    def names(self, folder: str) -> list[str]:
        """The names of what lies at any depth below a folder, sorted."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, or overwrites one."""
        ...

    def versions(self, run_id: str, role: str = "learner") -> str:
        """The folder of a run's versions."""
        ...

    def age(self, seconds: float) -> None:
        """Lets that time pass for everything in it."""
        ...


class DirectoryPlace:
    """A store in a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.settings = WeightsConfig(path=root)

    def open(self) -> Storage:
        return open_storage(self.settings)

    def names(self, folder: str) -> list[str]:
        below = self._root / folder
        return sorted(path.relative_to(below).as_posix() for path in below.rglob("*") if path.is_file())

    def write(self, name: str, content: bytes) -> None:
        (self._root / name).write_bytes(content)

    def versions(self, run_id: str, role: str = "learner") -> str:
        return f"runs/{run_id}/{role}"

    def age(self, seconds: float) -> None:
        _age_files(self._root, seconds)


class ObjectPlace:
    """A store in a bucket of its own, with its cache in a directory."""

    def __init__(self, server: S3Server, cache: Path) -> None:
        self.server = server
        self.bucket = f"bucket-{uuid.uuid4().hex}"
        self.cache = cache
        self.settings = WeightsConfig(path=f"s3://{self.bucket}/some/where", cache_path=cache)
        server.make_bucket(self.bucket)

    def open(self) -> Storage:
        return open_storage(self.settings)

    def names(self, folder: str) -> list[str]:
        below = f"some/where/{folder}/"
        return [key.removeprefix(below) for key in self.server.keys(self.bucket) if key.startswith(below)]

    def write(self, name: str, content: bytes) -> None:
        self.server.write(self.bucket, f"some/where/{name}", content)

    def versions(self, run_id: str, role: str = "learner") -> str:
        folder = self.open().find_versions(run_id, role)
        assert folder is not None
        return folder

    def age(self, seconds: float) -> None:
        self.server.age(self.bucket, seconds)
        _age_files(self.cache / "staging", seconds)


def _age_files(root: Path, seconds: float) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            time_s = path.stat().st_mtime - seconds
            os.utime(path, (time_s, time_s))
