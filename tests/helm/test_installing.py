"""What the chart's README tells an operator to type before `helm install`, typed; the cluster is this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from preceptor_service.access.access_file import parse_access, token_hash
from tests.helm.binaries import HELMS, binary
from tests.helm.rendering import CHART, NAMESPACE, RELEASE, render
from tests.prerequisites import lacking

ROOT = CHART.parents[1]
_SHELL = """
umask 022
preceptor() { "$PYTHON" -m preceptor_service "$@"; }
kubectl() {
  echo "$*" >> kubectl.log
  while [ $# -gt 0 ]; do
    if [ "$1" = --from-file ]; then test -s "$2" || exit 1; fi
    shift
  done
}
helm() {
  test "$1 $2" = "install demo" || exit 1
  shift
  "$HELM" template "$@" > rendered.yaml
}
"""
"""A cluster that takes what it is given, if it is there."""


def blocks(page: Path, heading: str) -> list[str]:
    """Returns the shell commands below a heading of a page."""
    section = page.read_text().partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    found: list[str] = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    assert found, heading
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every command was typed, in the order of the pages."""
    if shutil.which("openssl") is None:
        lacking("openssl")
    place = tmp_path_factory.mktemp("operator")
    (place / "helm").symlink_to(ROOT / "helm")
    typed = [_SHELL, *blocks(ROOT / "docs" / "security.md", "## TLS"), *blocks(CHART / "README.md", "## Install")]
    variables = {"PYTHON": sys.executable, "HELM": str(binary(HELMS[0]))}
    told = subprocess.run(
        ["bash", "-e"],
        input="".join(typed),
        cwd=place,
        env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    return place


def test_the_secrets_are_those_that_the_release_mounts(folder: Path) -> None:
    made = set(re.findall(r"create secret generic (\S+)", (folder / "kubectl.log").read_text()))
    mounted = {
        volume["secret"]["secretName"]
        for volume in render("minimal").templates["gateway"]["spec"]["volumes"]
        if "secret" in volume
    }

    assert made == mounted


def test_the_release_runs_the_image_from_where_it_was_pushed(folder: Path) -> None:
    images = set(re.findall(r"^ +image: (\S+)", (folder / "rendered.yaml").read_text(), re.MULTILINE))

    assert images == {f"registry.example.com/{render('minimal').container('head')['image']}"}


def test_nobody_else_on_the_machine_reads_the_token(folder: Path) -> None:
    assert (folder / "token").stat().st_mode & 0o077 == 0


def test_the_access_file_knows_the_token(folder: Path) -> None:
    access = folder / "access.yaml"
    table = parse_access(access.read_bytes(), access)

    assert token_hash((folder / "token").read_text().strip()) in access.read_text()
    assert table.grants("team-a").allow("create", "team-a-1")


@pytest.mark.parametrize("host", ["localhost", f"{RELEASE}-preceptor.{NAMESPACE}.svc"])
def test_the_certificate_of_a_try_out_is_valid_for(folder: Path, host: str) -> None:
    command = ["openssl", "verify", "-CAfile", "ca.crt", "-verify_hostname", host, "tls.crt"]
    told = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)

    assert told.returncode == 0, told.stderr
