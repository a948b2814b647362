"""What tests of every room share: the checkout, and the outside programs and data that some of them need."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.crashed_workers import (  # noqa: F401  # hooks
    pytest_handlecrashitem,
    pytest_terminal_summary,
    pytest_xdist_make_scheduler,
)
from tests.prerequisites import lacking
from tests.stores import DirectoryPlace, ObjectPlace, Place

if TYPE_CHECKING:
    from tests.s3_server import S3Server


@pytest.fixture(scope="module", autouse=True)
def _left_objects_are_left_alone() -> Iterator[None]:
    """Keeps the garbage collector from walking, test after test, what earlier modules left behind.

    Python 3.11.7 died of that now and then, in `gc.collect()` of some later test: a traceback that had outlived its
    frame. Whose it was is not known; thousands of calls of grpc.aio, written in Cython, had come and gone by then.
    It has died once since, which `crashed_workers` outlives.
    """
    yield
    gc.freeze()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def promtool() -> Path:
    """Prometheus' checker of metrics and rules."""
    found = shutil.which("promtool")
    return Path(found) if found else lacking("promtool (Debian package prometheus)")


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """The folder of the four gzipped IDX files of Fashion-MNIST."""
    folder = Path("/usr/share/datasets/fashion-mnist")
    return folder if folder.is_dir() else lacking("Fashion-MNIST (Debian package dataset-fashion-mnist)")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 server that clients of this process, and of those that it starts, find in their environment."""
    for package in ("s3fs", "moto"):
        if importlib.util.find_spec(package) is None:
            lacking(f"the package {package}")
    from tests.s3_server import S3Server

    before = dict(os.environ)
    with S3Server() as server:
        os.environ.update(server.environment)
        yield server
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def object_store(s3_server: S3Server, tmp_path: Path) -> Iterator[ObjectPlace]:
    """An empty store in an object store."""
    yield ObjectPlace(s3_server, tmp_path / "cache")
    s3_server.spoil = lambda environ: None


@pytest.fixture(params=["directory", "object_store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty store, in a directory and in an object store."""
    if request.param == "directory":
        return DirectoryPlace(tmp_path)
    found: Place = request.getfixturevalue("object_store")
    return found
