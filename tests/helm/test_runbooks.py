"""What the runbooks set up first, by a shell: a `kubectl` that finds the chart's pods, and a gateway inside them."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from preceptor import SelectionClient, Tls
from tests.access.certificates import Authority
from tests.access.conftest import Guarded
from tests.cli.conftest import environment
from tests.helm.rendering import NAMESPACE, RELEASE, render
from tests.service import digits

NAME = f"{RELEASE}-preceptor.{NAMESPACE}.svc"
Shell = Callable[[str], subprocess.CompletedProcess[str]]

KUBECTL = '''#!{python}
"""Answers as the API server with the chart's pods would, and runs what is executed here, where the pod's files are."""
import json, os, sys
pods, files, port = json.loads({pods!r}), {files!r}, {port!r}
namespace, verb, *rest = sys.argv[1:][1:]
assert sys.argv[1] == "--namespace" and namespace == {namespace!r}, sys.argv
option = lambda name: rest[rest.index(name) + 1]
if verb == "get":
    wanted = dict(label.split("=") for label in option("--selector").split(","))
    for name, pod in pods.items():
        if wanted.items() <= pod["labels"].items():
            print("pod/" + name)
else:
    assert verb == "exec" and "--stdin" in rest
    command = rest[rest.index("--") + 1 :]
    pod = pods[rest[rest.index("--") - 1].removeprefix("pod/")]
    assert option("--container") in pod["containers"], pod
    within = [word.replace("/etc/preceptor/tls/", files + "/").replace(":7600", ":" + port) for word in command]
    os.execvp(within[0], within)
'''


def how_to_look(repository: Path) -> str:
    """The block of shell below *How to look*."""
    page = (repository / "docs/alerts.md").read_text()
    block = re.search(r"^## How to look\n.*?^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert block is not None
    return block[1]


@pytest.fixture(scope="module")
def shell(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Runs a line after what the page sets up, beside a gateway with TLS that knows its callers."""
    folder, rendering = tmp_path_factory.mktemp("runbooks"), render("minimal")
    authority = Authority()
    pair = authority.issue(dns=NAME)
    for name, content in (("ca.crt", authority.pem), ("tls.crt", pair.certificate), ("tls.key", pair.private_key)):
        (folder / name).write_bytes(content)
    tls = {"certificate": str(folder / "tls.crt"), "private_key": str(folder / "tls.key")}
    guarded = Guarded(folder / "service", tls=tls)
    port = str(guarded.service.ports.grpc)
    pods = {
        name: {
            "labels": template["metadata"]["labels"],
            "containers": [container["name"] for container in template["spec"]["containers"]],
        }
        for name, template in rendering.templates.items()
    }
    programs = folder / "bin"
    programs.mkdir()
    kubectl = KUBECTL.format(
        python=sys.executable, pods=json.dumps(pods), files=str(folder), port=port, namespace=NAMESPACE
    )
    for name, text in (
        ("kubectl", kubectl),
        ("preceptor", f'#!/bin/sh\nexec "{sys.executable}" -m preceptor_service "$@"\n'),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (folder / "token").write_text(f"{guarded.token('admin')}\n")
    with SelectionClient(
        f"127.0.0.1:{port}", token=guarded.token("owner"), tls=Tls(authority.pem, server_name=NAME)
    ) as client:
        client.create_run(digits.spec("team-a"))

    def run(line: str) -> subprocess.CompletedProcess[str]:
        variables = environment(repository, PATH=f"{programs}{os.pathsep}{os.environ['PATH']}")
        return subprocess.run(
            ["sh", "-euc", f"{how_to_look(repository)}\n{line}"],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    yield run
    guarded.service.stop()


def test_the_variables_name_the_pods_of_the_release(shell: Shell) -> None:
    assert shell('echo "$HEAD $GATEWAY"; k get pods --selector $PODS=scorer --output name').stdout.split() == [
        "pod/head",
        "pod/gateway",
        "pod/cpu",
    ]


def test_a_secured_gateway_answers_from_its_own_pod(shell: Shell) -> None:
    for line, found in (("ask health", "serving\n"), ("ask status --once", "team-a"), ("ask runs", "team-a")):
        ran = shell(line)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert found in ran.stdout
    shown = shell("ask runs team-a").stdout
    assert "\nowner: owner\n" in shown
    assert "\n  on_stale: uniform\n" in shown
    assert shell("GATEWAY=pod/gateway ask health").stdout == "serving\n"
    assert shell("ask delete team-a --yes").stdout == "deleted run team-a, its weights and its ledger\n"


def test_it_asks_as_the_probes_of_the_chart_do(repository: Path) -> None:
    command = render("minimal").container("gateway")["readinessProbe"]["exec"]["command"]
    options = dict(itertools.pairwise(command))
    block = how_to_look(repository).replace("$NAMESPACE", NAMESPACE)
    assert f"PRECEPTOR_TARGET={options['--target']} " in block
    assert f"PRECEPTOR_TLS_CA={options['--tls-ca']} " in block
    assert f'PRECEPTOR_TLS_NAME="{options["--tls-name"]}" ' in block


def test_a_release_that_asks_for_certificates_has_them_where_the_page_says(repository: Path) -> None:
    command = render("tls").container("gateway")["readinessProbe"]["exec"]["command"]
    options = dict(itertools.pairwise(command))
    page = (repository / "docs/alerts.md").read_text()
    assert f"PRECEPTOR_TLS_CERTIFICATE={options['--tls-certificate']} " in page
    assert f"PRECEPTOR_TLS_KEY={options['--tls-key']}`" in page


def test_every_question_of_the_runbooks_is_a_command(repository: Path) -> None:
    page = (repository / "docs/alerts.md").read_text()
    asked = set(re.findall(r"`(?:GATEWAY=POD )?ask (\w+)", page))
    assert asked == {"status", "runs", "health", "delete"}
    assert not re.search(r"`preceptor (status|runs|health|delete)", page)
    assert "ray.io/node-type" not in page, "another release in the namespace has such pods too"
