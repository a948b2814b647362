"""What `docs/operations.md` says of backups on Kubernetes: an API server takes its pod, and its commands work."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.rendering import CHART, KUBERNETES, render
from tests.helm.strictness import faults
from tests.stores import DirectoryPlace
from tests.weight_store.pushing import push, store_with_runs

_KUBECTL = """
kubectl() {
  case "$*" in *"get pods"*) echo pod/gateway; return ;; esac
  while [ "$1" != -- ]; do shift; done
  shift
  if [ "$1" = preceptor ]; then shift; "$PYTHON" -m preceptor_service "$@"; fi
}
"""
"""A cluster whose pods are this machine."""


@pytest.fixture(scope="module")
def section() -> str:
    """What the operations page says about it."""
    page = (CHART.parents[1] / "docs" / "operations.md").read_text()
    return page.partition("## Back up and restore\n")[2].partition("\n## ")[0]


@pytest.fixture(scope="module")
def objects(section: str) -> list[dict[str, Any]]:
    """The manifests on that page."""
    (manifests,) = re.findall(r"^```yaml\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return list(yaml.safe_load_all(manifests))


@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_an_api_server_takes_the_claim_and_the_pod(objects: list[dict[str, Any]], kubernetes: str) -> None:
    assert [item["kind"] for item in objects] == ["PersistentVolumeClaim", "Pod"]
    assert [faults(item, kubernetes) for item in objects] == [[], []]


def test_the_pod_is_restricted_and_writes_as_the_service_does(objects: list[dict[str, Any]], section: str) -> None:
    claim, pod = objects
    (container,) = pod["spec"]["containers"]
    (volume,) = pod["spec"]["volumes"]
    name = claim["metadata"]["name"]
    rendering = render(changes={"persistence": {"existingClaim": name}})
    gateway, theirs = rendering.container("gateway"), rendering.templates["gateway"]["spec"]

    assert container["image"] == gateway["image"]
    assert container["volumeMounts"][0] in gateway["volumeMounts"]
    assert volume in theirs["volumes"]
    assert pod["spec"]["securityContext"].items() <= theirs["securityContext"].items()
    assert container["securityContext"].items() <= gateway["securityContext"].items()
    assert f"--set persistence.existingClaim={name}" in section


def test_a_store_comes_back_by_these_commands(section: str, tmp_path: Path) -> None:
    place = DirectoryPlace(tmp_path / "store")
    push(store_with_runs(place.open(), keep_versions=2), b"one")
    commands = re.findall(r"^kubectl [^\n]* exec (?:[^\n]*\\\n)*[^\n]*", section, re.MULTILINE)

    for command, store in zip(commands, ("store", "restored"), strict=True):
        moved = command.replace("/var/lib/preceptor/store", str(tmp_path / store))
        told = subprocess.run(
            ["bash", "-c", f"PYTHON={sys.executable}\n{_KUBECTL}{moved}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert told.returncode == 0, told.stderr
    restored = DirectoryPlace(tmp_path / "restored").open()

    assert restored.run_ids() == place.open().run_ids()
    assert restored.names("blobs") == place.open().names("blobs")
