"""The build steps of the images carried out here, and what they make, run as in a container with a read-only root."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from preceptor import SelectionClient, Tls
from tests.cli.conftest import Serving
from tests.outside import environment, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

NOWHERE = "/dev/null/home"
"""A folder that not even root can make: the home of a container whose root is read-only."""


@pytest.fixture(scope="module")
def preceptor(service_root: Path) -> Path:
    return service_root / "opt/preceptor/bin/preceptor"


@pytest.fixture(scope="module")
def serving(
    preceptor: Path, repository: Path, secrets: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    """The entry point with compose's settings, but for where files and ports are."""
    folder = tmp_path_factory.mktemp("container")
    text = (repository / "deploy/compose/preceptor.yaml").read_text()
    text = text.replace("/etc/preceptor/secrets", str(secrets / "gateway")).replace("/var/lib/preceptor", str(folder))
    settings = yaml.safe_load(text)
    settings["gateway"] |= {"host": "127.0.0.1", "port": 0}
    settings["metrics"] |= {"host": "127.0.0.1", "port": 0}
    (folder / "preceptor.yaml").write_text(yaml.safe_dump(settings))
    process = subprocess.Popen(
        [preceptor, "serve", "--config", "preceptor.yaml", "--pool", "in-process"],
        cwd=folder,
        env={**environment(), "HOME": NOWHERE, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        yield Serving(process)
        process.kill()


def test_the_entry_point_helps_and_prints_the_settings(preceptor: Path, repository: Path, tmp_path: Path) -> None:
    assert "serve" in run(preceptor, "--help", cwd=tmp_path, HOME=NOWHERE).stdout
    assert (
        run(preceptor, "config", cwd=tmp_path, HOME=NOWHERE).stdout == (repository / "deploy/config.yaml").read_text()
    )


def test_the_list_of_contents_names_what_is_installed(service_root: Path) -> None:
    listed = json.loads((service_root / "opt/sbom.cdx.json").read_text())
    found = metadata.distributions(path=[str(next((service_root / "opt/preceptor/lib").glob("*/site-packages")))])

    assert (listed["bomFormat"], len(listed["components"]) > 50) == ("CycloneDX", True)
    assert {(part["name"], part["version"]) for part in listed["components"]} == {(d.name, d.version) for d in found}


def test_ray_and_what_kuberay_calls_are_there(service_root: Path, tmp_path: Path) -> None:
    for command in ("ray", "serve"):
        assert run(service_root / "opt/preceptor/bin" / command, "--help", cwd=tmp_path, HOME=NOWHERE).returncode == 0
    imported = run(
        service_root / "opt/preceptor/bin/python", "-c", "from preceptor_service.serve_app import build", cwd=tmp_path
    )
    assert imported.returncode == 0, imported.stderr


def test_the_trainer_trains_through_tls_with_its_token_until_the_service_is_told_to_stop(
    serving: Serving, preceptor: Path, trainer_root: Path, secrets: Path, repository: Path, tmp_path: Path
) -> None:
    target = f"localhost:{serving.port()}"
    authority = str(secrets / "trainer/ca.crt")
    health = run(preceptor, "health", cwd=tmp_path, PRECEPTOR_TARGET=target, PRECEPTOR_TLS_CA=authority)
    assert (health.returncode, health.stdout) == (0, "serving\n")

    trained = run(
        trainer_root / "opt/preceptor/bin/python", repository / "examples/quickstart.py",
        cwd=tmp_path, HOME=NOWHERE, OMP_NUM_THREADS="1", PRECEPTOR_TARGET=target, PRECEPTOR_TLS_CA=authority,
        PRECEPTOR_TOKEN_FILE=str(secrets / "trainer/token"),
    )  # fmt: skip
    assert (trained.returncode, trained.stderr) == (0, "")
    assert "accuracy" in trained.stdout

    token = (secrets / "trainer/token").read_text().strip()
    with SelectionClient(target, token=token, tls=Tls(Path(authority).read_bytes())) as client:
        (run_status,) = client.list_runs()
    assert run_status.super_batches == 320
    assert serving.end(signal.SIGTERM) == 0
    assert serving.out.endswith("stopped\n")


def test_nothing_was_written_where_it_is_installed(service_root: Path, serving: Serving) -> None:
    serving.process.wait(60)
    installed = service_root / "opt/sbom.cdx.json"
    newer = [
        str(path)
        for path in (service_root / "opt/preceptor").rglob("*")
        if path.lstat().st_mtime > installed.stat().st_mtime
    ]

    assert newer == []
