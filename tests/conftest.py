"""What tests of every room share: the checkout, and the outside programs and data that some of them need."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.prerequisites import lacking


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
