"""What helm prints after an installation: three commands that work on a secured release, and warnings where due."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from preceptor_service.access.access_file import new_token, token_hash
from preceptor_service.app import RunningService, start_service
from tests.access.certificates import Authority
from tests.helm.binaries import HELMS, binary
from tests.helm.rendering import CHART, NAMESPACE, RELEASE, VALUES
from tests.outside import run
from tests.service.conftest import config

NAME = f"{RELEASE}-preceptor.{NAMESPACE}.svc"
_KUBECTL = """#!/bin/bash
# A cluster whose pods are this machine.
case "$*" in *" wait "*) exit 0 ;; *"get pods"*) echo pod/gateway; exit 0 ;; esac
case "$*" in *" exec --stdin "*) ;; *) exec < /dev/null ;; esac
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
"""


def notes_of(*arguments: str) -> str:
    """Returns what helm prints after an installation with these arguments; helm 4 needs no cluster for it."""
    command: list[str | Path] = [binary(HELMS[1]), "install", RELEASE, CHART, "--dry-run=client"]
    command += ["--namespace", NAMESPACE, *arguments]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return told.stdout.partition("\nNOTES:\n")[2]


def notes_for(values: str, *arguments: str) -> str:
    """Returns the notes of a value set of `ci/`."""
    return notes_of("--values", str(CHART / "ci" / f"{values}-values.yaml"), *arguments)


def commands(notes: str) -> list[str]:
    """Returns what stands below the numbers."""
    return re.findall(r"^  \d\. [^\n]*\n((?:     .*\n)+)", notes, re.MULTILINE)


@pytest.mark.parametrize("values", VALUES)
def test_notes_tell_the_next_three_commands(values: str) -> None:
    notes = notes_for(values)

    assert re.findall(r"^  (\d)\. ", notes, re.MULTILINE) == ["1", "2", "3"]
    assert all(command.startswith(f"     kubectl --namespace {NAMESPACE} ") for command in commands(notes))
    assert "INSECURE" not in notes
    assert "WARNING" not in notes


TOKEN = new_token()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningService, Path]]:
    """A secured service, and the folder with what pods and an operator have."""
    folder = tmp_path_factory.mktemp("release")
    servers, clients = Authority("servers"), Authority("clients")
    gateway, probe = servers.issue(dns=NAME), clients.issue("probe", dns="probe")
    access = {
        "tokens": {token_hash(TOKEN): {"identity": "team-a"}},
        "identities": {"team-a": {"roles": {"create": ["team-a-*"]}}},
    }
    files = {
        "tls/tls.crt": gateway.certificate,
        "tls/tls.key": gateway.private_key,
        "tls/ca.crt": servers.pem,
        "client-ca/ca.crt": clients.pem,
        "probe/tls.crt": probe.certificate,
        "probe/tls.key": probe.private_key,
        "auth/access.yaml": yaml.safe_dump(access).encode(),
        "token": f"{TOKEN}\n".encode(),
        "bin/kubectl": _KUBECTL.encode(),
        "bin/preceptor": f'#!/bin/sh\nexec {sys.executable} -m preceptor_service "$@"\n'.encode(),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    for program in ("kubectl", "preceptor"):
        (folder / "bin" / program).chmod(0o755)
    tls = {"certificate": folder / "tls/tls.crt", "private_key": folder / "tls/tls.key"}
    secured = config(
        folder / "store",
        tls={**tls, "client_ca": folder / "client-ca/ca.crt"},
        auth={"access_file": folder / "auth/access.yaml"},
    )
    running = start_service(secured)
    try:
        yield running, folder
    finally:
        running.stop()


def carried_out(command: str, service: tuple[RunningService, Path]) -> subprocess.CompletedProcess[str]:
    """Runs a command of the notes with the fixture's service in the place of the cluster's."""
    running, folder = service
    here = re.sub(rf"({NAME}|127\.0\.0\.1):7600", f"127.0.0.1:{running.ports.grpc}", command)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return run(
        "bash",
        "-c",
        here.replace("/etc/preceptor", str(folder)),
        cwd=folder,
        PATH=path,
        PYTHONPATH=os.pathsep.join(sys.path),
    )


def test_each_command_works_on_a_secured_release(service: tuple[RunningService, Path]) -> None:
    told = [carried_out(command, service) for command in commands(notes_for("tls"))]

    assert [one.returncode for one in told] == [0, 0, 0], [one.stderr for one in told]
    assert told[1].stdout == "serving\n"


def test_the_third_command_asks_with_the_token(service: tuple[RunningService, Path]) -> None:
    command = commands(notes_for("tls"))[2]
    told = carried_out(command.replace("< token", "<<< another"), service)

    assert told.returncode == 1
    assert "UNAUTHENTICATED" in told.stderr or "token" in told.stderr


def test_commands_of_a_plain_release_name_neither_tls_nor_a_token() -> None:
    notes = notes_for(
        "minimal",
        "--set",
        "config.tls=null,tls.existingSecret=,config.auth=null,auth.existingSecret=,allowInsecure=true",
    )

    assert len(commands(notes)) == 3
    assert "--tls" not in notes
    assert "token" not in notes
    assert "INSECURE" in notes


def test_no_command_sends_a_token_in_the_clear_to_another_machine() -> None:
    notes = notes_for("minimal", "--set", "config.tls=null,tls.existingSecret=,config.auth.allow_plaintext=true")

    assert "preceptor runs --target 127.0.0.1:7600'" in commands(notes)[2]
    assert f"what ends TLS in front of {NAME}:7600" in notes


def test_a_certificate_of_another_name_is_asked_for_by_that_name() -> None:
    notes = notes_for("minimal", "--set", "tls.probe.serverName=preceptor.example.com")

    assert f"preceptor runs --target {NAME}:7600 " in commands(notes)[2]
    assert "--tls-name preceptor.example.com" in commands(notes)[2]
    assert f"connect to {NAME}:7600.\nIts certificate says preceptor.example.com," in notes
    assert "Its certificate says" not in notes_for("minimal")


def test_notes_warn_of_a_policy_that_goes_by_a_label_alone() -> None:
    everywhere = '[{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "operator"}}}]'
    notes = notes_for("minimal", "--set-json", f"networkPolicy.operator={everywhere}")

    assert "WARNING: networkPolicy.operator has an empty namespaceSelector" in notes
