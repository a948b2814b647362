"""The environments of the images, made by the steps of their Dockerfile, and the secrets that compose wants."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.deploy.dockerfiles import carry_out, stages
from tests.outside import run
from tests.prerequisites import lacking


@pytest.fixture(scope="session")
def service_root(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder whose `opt/preceptor` the service image has."""
    return _built(repository, "service-sbom", tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="session")
def trainer_root(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder whose `opt/preceptor` the trainer image has."""
    return _built(repository, "trainer-venv", tmp_path_factory.mktemp("trainer"))


def _built(repository: Path, stage: str, root: Path) -> Path:
    try:
        carry_out(stages(repository / "deploy/docker/Dockerfile"), stage, repository, root)
    except RuntimeError as error:
        if "No matching distribution" in str(error) or "Could not find a version" in str(error):
            lacking(f"a package index that has what the images install: {str(error)[-500:]}")
        raise
    return root


@pytest.fixture(scope="session")
def secrets(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that make-secrets.sh made."""
    if shutil.which("openssl") is None:
        lacking("openssl")
    folder = tmp_path_factory.mktemp("compose")
    script = shutil.copy(repository / "deploy/compose/make-secrets.sh", folder)
    paths = f"{repository / 'services'}:{repository / 'clients/python'}"
    made = run(
        "bash", script, "gpu1", "192.0.2.7",
        cwd=folder, PRECEPTOR_COMMAND=f"{sys.executable} -m preceptor_service", PYTHONPATH=paths,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return folder / "secrets"
