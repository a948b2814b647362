"""Both majors of helm, every value set, every version of Kubernetes: lint, template, and strict validation."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helm.binaries import HELMS, binary
from tests.helm.rendering import CHART, KUBERNETES, VALUES, render
from tests.helm.strictness import faults


def test_there_is_a_value_set_for_each_promised_case() -> None:
    assert set(VALUES) == {"minimal", "gpu", "tls", "multi-tenant", "air-gapped"}


@pytest.mark.parametrize("helm", HELMS)
def test_lint_finds_no_fault(helm: str) -> None:
    for values in VALUES:
        for kubernetes in KUBERNETES:
            command: list[str | Path] = [binary(helm), "lint", "--strict", CHART, "--kube-version", kubernetes]
            command += ["--values", CHART / "ci" / f"{values}-values.yaml"]
            told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert told.returncode == 0, told.stdout + told.stderr
            assert "[WARNING]" not in told.stdout + told.stderr
            assert "[ERROR]" not in told.stdout + told.stderr


@pytest.mark.parametrize("helm", HELMS)
def test_the_bare_chart_lints_too(helm: str) -> None:
    told = subprocess.run(
        [binary(helm), "lint", "--strict", CHART], capture_output=True, text=True, timeout=60, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize("values", VALUES)
def test_both_majors_render_the_same_for_every_version_of_kubernetes(values: str) -> None:
    wanted = render(values)
    assert wanted.objects
    for helm in HELMS:
        for kubernetes in KUBERNETES:
            assert render(values, helm=helm, kubernetes=kubernetes) == wanted, (helm, kubernetes)


def test_kubernetes_before_1_27_is_refused() -> None:
    told = subprocess.run(
        [binary(HELMS[0]), "template", CHART, "--kube-version", "1.26.0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode != 0
    assert "incompatible with Kubernetes v1.26.0" in told.stderr


@pytest.mark.parametrize("kubernetes", KUBERNETES)
@pytest.mark.parametrize("values", VALUES)
def test_every_object_is_strictly_valid(values: str, kubernetes: str) -> None:
    found = {
        f"{item['kind']} {item['metadata']['name']}": faults(item, kubernetes)
        for item in render(values, kubernetes=kubernetes).objects
    }
    assert found == {name: [] for name in found}


def _changed(manifest: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(manifest)
    place: Any = changed
    *folders, last = path.split("/")
    for key in folders:
        place = place[int(key) if key.isdigit() else key]
    place[last] = value
    return changed


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Service", "spec/selectors", {}),
        ("Service", "spec/ports/0/port", "7600"),
        ("RayService", "spec/serveConfig", ""),
        ("RayService", "spec/rayClusterConfig/workerGroupSpecs/0/minReplica", 1),
        ("RayService", "spec/rayClusterConfig/workerGroupSpecs/0/replicas", "1"),
        ("RayService", "spec/rayClusterConfig/headGroupSpec/template/spec/container", []),
        ("RayService", "spec/rayClusterConfig/headGroupSpec/template/spec/securityContext/runAsRoot", False),
        ("RayService", "spec/rayClusterConfig/authOptions/mode", "password"),
        ("RayService", "metadata/label", {}),
        ("PodMonitor", "spec/podMetricsEndpoints/0/intervall", "15s"),
        ("PrometheusRule", "spec/groups/0/rules/0/exprs", "up"),
        ("NetworkPolicy", "spec/ingress/0/port", 1),
    ],
)
def test_validation_is_strict(kind: str, path: str, value: Any) -> None:
    manifest = render("gpu").of(kind)[0]
    assert faults(manifest, KUBERNETES[0]) == []
    assert faults(_changed(manifest, path, value), KUBERNETES[0]) != []
