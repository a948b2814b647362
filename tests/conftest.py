"""What tests of every room share: the outside programs that some of them need."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def lacking(what: str) -> NoReturn:
    """Skips the test for lack of `what`; fails it in CI, which has to have everything."""
    if os.environ.get("CI"):
        pytest.fail(f"CI lacks {what}")
    pytest.skip(f"this machine lacks {what}")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def promtool() -> Path:
    """Prometheus' checker of metrics and rules."""
    found = shutil.which("promtool")
    return Path(found) if found else lacking("promtool (Debian package prometheus)")


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """The folder of the four gzipped IDX files of Fashion-MNIST."""
    folder = Path("/usr/share/dataset-fashion-mnist")
    return folder if folder.is_dir() else lacking("Fashion-MNIST (Debian package dataset-fashion-mnist)")
