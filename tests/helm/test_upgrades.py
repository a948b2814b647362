"""Which changes of several values stay inside the running cluster, and which start a second one."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.binaries import HELMS, binary
from tests.helm.rendering import CHART, Manifest, render


def compared(cluster: Manifest) -> Manifest:
    """Returns what KubeRay compares of a cluster: everything but numbers of pods."""
    left = copy.deepcopy(cluster)
    for group in left["workerGroupSpecs"]:
        for key in ("replicas", "minReplicas", "maxReplicas"):
            group.pop(key)
    return left


IN_PLACE: dict[str, dict[str, Any]] = {
    "settings of the service": {"config": {"limits": {"max_runs": 5}, "gateway": {"window_bytes": 1 << 28}}},
    "more gateways": {"config": {"gateway": {"replicas": 4}}},
    "more scorers": {"config": {"scorer": {"replicas": 3}}, "scorerGroups": {"cpu": {"replicas": 3}}},
    "the Service": {"service": {"port": 443, "annotations": {"a": "b"}}, "headless": {"enabled": True}},
    "policies": {"networkPolicy": {"trainers": [{"podSelector": {"matchLabels": {"a": "b"}}}]}},
    "monitoring": {
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboards": {"enabled": True},
        "networkPolicy": {"prometheus": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}]},
    },
    "labels of objects": {"commonLabels": {"a": "b"}, "commonAnnotations": {"c": "d"}},
    "the upgrade strategy": {"ray": {"upgradeStrategy": "None", "clusterDeletionDelaySeconds": 300}},
    "the claim's annotations": {"persistence": {"annotations": {"a": "b"}}},
}


@pytest.mark.parametrize("changes", IN_PLACE.values(), ids=IN_PLACE)
def test_stays_in_the_running_cluster(changes: dict[str, Any]) -> None:
    before, after = render(), render(changes=changes)

    assert before.objects != after.objects
    assert compared(before.cluster) == compared(after.cluster)


def test_new_grants_stay_in_the_running_cluster() -> None:
    before = render("multi-tenant")
    after = render("multi-tenant", {"auth": {"grants": {"groups": {"audio": {"roles": {"create": ["audio-*"]}}}}}})

    assert before.one("ConfigMap") != after.one("ConfigMap")
    assert before.cluster == after.cluster


def test_a_new_chart_version_stays_in_the_running_cluster(tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    subprocess.run(["cp", "-r", CHART, newer], check=True)
    chart = yaml.safe_load((newer / "Chart.yaml").read_text())
    (newer / "Chart.yaml").write_text(yaml.safe_dump({**chart, "version": "9.9.9", "appVersion": "9.9.9"}))

    def cluster(folder: Path) -> Manifest:
        command: list[str | Path] = [
            binary(HELMS[0]),
            "template",
            folder,
            "--values",
            CHART / "ci" / "minimal-values.yaml",
        ]
        command += ["--set", "image.tag=0.1.0"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        (service,) = [item for item in yaml.safe_load_all(told.stdout) if item["kind"] == "RayService"]
        found: Manifest = service["spec"]["rayClusterConfig"]
        return found

    assert cluster(newer) == cluster(CHART)


def test_a_group_whose_name_sorts_last_joins_the_running_cluster() -> None:
    before = compared(render("gpu").cluster)
    group = {"cpus": 8, "memory": "32Gi", "gpus": 1, "maxReplicas": 1}
    after = compared(render("gpu", {"scorerGroups": {"z-h100": group}}).cluster)
    first = compared(render("gpu", {"scorerGroups": {"a-first": group}}).cluster)
    old = len(before["workerGroupSpecs"])

    assert len(after["workerGroupSpecs"]) == old + 1
    assert after["workerGroupSpecs"][:old] == before["workerGroupSpecs"]
    assert first["workerGroupSpecs"][:old] != before["workerGroupSpecs"]


def test_a_longer_drain_changes_pods_even_where_they_have_time_enough() -> None:
    patient = {"gateway": {"terminationGracePeriodSeconds": 600}}
    before, after = render(changes=patient), render(changes={**patient, "config": {"gateway": {"drain_s": 90}}})

    assert before.templates["gateway"]["spec"]["terminationGracePeriodSeconds"] == 600
    assert after.templates["gateway"]["spec"]["terminationGracePeriodSeconds"] == 600
    assert compared(before.cluster) != compared(after.cluster)


def test_other_bounds_of_autoscaling_stay_in_the_running_cluster() -> None:
    before, after = render("gpu"), render("gpu", {"config": {"scorer": {"max_replicas": 11}}})

    assert compared(before.cluster) == compared(after.cluster)


def test_tls_that_is_turned_off_starts_a_second_cluster() -> None:
    plain = {"config": {"tls": None, "auth": {"allow_plaintext": True}}, "tls": {"existingSecret": ""}}

    assert compared(render().cluster) != compared(render(changes=plain).cluster)


def test_both_clusters_answer_while_one_takes_over_from_the_other() -> None:
    rendering = render(changes={"image": {"tag": "0.2.0"}})

    assert rendering.one("RayService")["spec"]["upgradeStrategy"] == {"type": "NewCluster"}
    assert not any(key.startswith("ray.io/") for key in rendering.one("Service")["spec"]["selector"])
