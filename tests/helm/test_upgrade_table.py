"""What the README says of every value: whether its change stays in the running cluster or starts a second one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from preceptor_service.config import ServiceConfig
from tests.helm.rendering import CHART, Rendering, render
from tests.helm.test_mounted_files import settings
from tests.helm.test_upgrades import compared

PEERS = [{"podSelector": {"matchLabels": {"a": "b"}}}]
MAP = {"example.com/a": "b"}
OWN_VOLUME = {
    "extraVolumes": [{"name": "own", "csi": {"driver": "files.example"}}],
    "extraVolumeMounts": [{"name": "own", "mountPath": "/var/lib/preceptor"}],
}
TABLES = {"config": {"reference_losses": {"directory": "/srv/tables"}}, "referenceLosses": {"existingClaim": "tables"}}
OWN_TABLES = {"config": {"reference_losses": {"directory": "/var/lib/preceptor/tables"}}, **OWN_VOLUME}
COLLECTOR = {"config": {"tracing": {"endpoint": "https://collector:4317"}}, **OWN_VOLUME}
CALLERS = {"networkPolicy": {"trainers": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}}

BEFORE: dict[str, tuple[str, dict[str, Any]]] = {
    "auth.grants": ("multi-tenant", {}),
    "config.audit": ("minimal", OWN_VOLUME),
    "config.auth.oidc": ("multi-tenant", {}),
    "config.reference_losses": ("minimal", TABLES),
    "config.scorer.num_gpus": ("gpu", {}),
    "config.scorer.replicas": ("minimal", {"scorerGroups": {"cpu": {"replicas": 2}}}),
    "config.scorer.resources": ("minimal", {"scorerGroups": {"cpu": {"rayResources": {"fast": 1}}}}),
    "config.tls.client_ca": ("minimal", {"tls": {"probe": {"certificateSecret": "probe"}}}),
    "config.tracing": ("minimal", COLLECTOR),
    "config.weights.cache_path": ("multi-tenant", {}),
    "dashboards": ("gpu", {}),
    "grpcRoute": ("multi-tenant", {}),
    "headless.annotations": ("tls", {}),
    "networkPolicy.egress": ("multi-tenant", {}),
    "objectStore": ("multi-tenant", {}),
    "persistence.enabled": ("minimal", OWN_VOLUME),
    "podDisruptionBudget": ("gpu", {}),
    "podMonitor": ("gpu", {}),
    "prometheusRule": ("gpu", {}),
    "ray.auth.mode": ("minimal", {"allowInsecure": True}),
    "ray.autoscaler": ("gpu", {}),
    "ray.gcsFaultTolerance": ("gpu", {"ray": {"upgradeStrategy": "None"}}),
    "referenceLosses": ("minimal", OWN_TABLES),
    "runbookBaseUrl": ("gpu", {}),
    "scorerGroups.*.gpuResource": ("gpu", {}),
    "scorerGroups.*.gpus": ("gpu", {}),
    "scorerGroups.*.idleTimeoutSeconds": ("gpu", {}),
    "scorerGroups.*.maxReplicas": ("gpu", {}),
    "scorerGroups.*.minReplicas": ("gpu", {}),
    "service.externalTrafficPolicy": ("tls", {}),
    "service.loadBalancerSourceRanges": ("tls", {}),
    "service.type": ("minimal", CALLERS),
    "tls.certManager": ("tls", {}),
    "tls.certManager.enabled": ("minimal", {}),
}
"""Value → a value set in which it counts, with what it needs; the longest name decides, and else it is `minimal`."""

AFTER: dict[str, Any] = {
    "allowInsecure": True,
    "auth.existingSecret": "other",
    "auth.grants": {"groups": {"audio": {"roles": {"create": ["audio-*"]}}}},
    "commonAnnotations": MAP,
    "commonLabels": MAP,
    "config.architectures": {"a": "b.c:d"},
    "config.audit.file": "/var/lib/preceptor/audit.jsonl",
    "config.auth.access_file": "/etc/preceptor/auth/other.yaml",
    "config.auth.oidc.algorithms": ["EdDSA"],
    "config.auth.oidc.audience": "other",
    "config.auth.oidc.groups_claim": "teams",
    "config.auth.oidc.issuer": "https://other.example.com",
    "config.auth.oidc.jwks_ca": "/etc/preceptor/auth/ca.crt",
    "config.auth.oidc.jwks_file": "/etc/preceptor/auth/keys.json",
    "config.auth.oidc.jwks_url": "https://other.example.com/keys",
    "config.gateway.host": "::",
    "config.gateway.resources": {"preceptor_gateway": 2},
    "config.metrics.host": "::",
    "config.name": "other",
    "config.pool": "ray",
    "config.reference_losses.directory": "/srv/others",
    "config.rules": {"a": "b.c:d"},
    "config.scorer.device": "cpu",
    "config.scorer.max_replicas": 1,
    "config.scorer.num_cpus": 2,
    "config.scorer.num_gpus": 0.5,
    "config.scorer.resources": {"fast": 1},
    "config.scorer.threads": 2,
    "config.selectors": {"a": "b.c:d"},
    "config.tls.certificate": "/etc/preceptor/tls/other.crt",
    "config.tls.client_ca": "/etc/preceptor/tls/ca.crt",
    "config.tls.private_key": "/etc/preceptor/tls/other.key",
    "config.tracing.ca": "/var/lib/preceptor/ca.crt",
    "config.tracing.endpoint": "https://collector:4318",
    "config.tracing.sample_ratio": 0.5,
    "config.tracing.service_name": "other",
    "config.weights.cache_path": "/srv/cache",
    "config.weights.path": "/srv/store",
    "dashboards.annotations": {"grafana_folder": "Other"},
    "dashboards.enabled": False,
    "dashboards.labels": MAP,
    "extraEnv": [{"name": "A", "value": "b"}],
    "extraEnvFrom": [{"configMapRef": {"name": "a"}}],
    "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "demo-preceptor-more"}}],
    "extraVolumeMounts": [{"name": "tmp", "mountPath": "/more"}],
    "extraVolumes": [{"name": "more", "emptyDir": {}}],
    "fullnameOverride": "other",
    "grpcRoute.enabled": False,
    "grpcRoute.hostnames": ["other.example.com"],
    "grpcRoute.parentRefs": [{"name": "other"}],
    "headless.enabled": True,
    "image.digest": "sha256:" + "0" * 64,
    "image.pullPolicy": "Always",
    "image.registry": "registry.example.com",
    "image.repository": "other",
    "image.tag": "0.2.0",
    "imagePullSecrets": [{"name": "other"}],
    "nameOverride": "other",
    "networkPolicy.egress.dns": PEERS,
    "networkPolicy.egress.enabled": False,
    "networkPolicy.egress.rules": [],
    "networkPolicy.enabled": False,
    "networkPolicy.operator": PEERS,
    "networkPolicy.prometheus": PEERS,
    "networkPolicy.trainers": PEERS,
    "objectStore.credentialsSecret": "bucket",
    "persistence.accessModes": ["ReadWriteOnce"],
    "persistence.enabled": False,
    "persistence.existingClaim": "other",
    "persistence.keep": False,
    "persistence.size": "60Gi",
    "persistence.storageClass": "other",
    "podDisruptionBudget.enabled": False,
    "podDisruptionBudget.scorerMinAvailable": 2,
    "podMonitor.enabled": False,
    "podMonitor.interval": "30s",
    "podMonitor.metricRelabelings": [{"action": "labeldrop", "regex": "a"}],
    "podMonitor.relabelings": [{"action": "labeldrop", "regex": "a"}],
    "podMonitor.scrapeTimeout": "5s",
    "priorityClassName": "other",
    "prometheusRule.enabled": False,
    "ray.auth.existingSecret": "other",
    "ray.auth.mode": "disabled",
    "ray.autoscaler.resources": {"limits": {"cpu": "1"}},
    "ray.autoscaler.upscalingMode": "Aggressive",
    "ray.autoscaler.version": "v1",
    "ray.gcsFaultTolerance.enabled": False,
    "ray.gcsFaultTolerance.externalStorageNamespace": "other",
    "ray.gcsFaultTolerance.redisAddress": "other:6379",
    "ray.upgradeStrategy": "None",
    "ray.version": "2.61.0",
    "referenceLosses.existingClaim": "tables",
    "runbookBaseUrl": "https://git.example.com/preceptor",
    "scorerGroups.*.replicas": 2,
    "securityContext": {"runAsUser": 10002},
    "service.appProtocol": "kubernetes.io/h2c",
    "service.externalTrafficPolicy": "Cluster",
    "service.loadBalancerSourceRanges": ["10.1.0.0/16"],
    "service.port": 443,
    "service.type": "LoadBalancer",
    "serviceAccount.create": False,
    "serviceAccount.name": "other",
    "tls.certManager.dnsNames": ["other.example.com"],
    "tls.certManager.duration": "1000h",
    "tls.certManager.enabled": True,
    "tls.certManager.issuerKind": "Issuer",
    "tls.certManager.issuerName": "other",
    "tls.certManager.renewBefore": "100h",
    "tls.clientCaSecret": "other",
    "tls.existingSecret": "other",
    "tls.probe.authority": "/etc/preceptor/tls/other.crt",
    "tls.probe.certificateSecret": "other",
    "tls.probe.serverName": "other.example.com",
    # The same in head, gateway and groups of scorers; those of services, too.
    "affinity": {"nodeAffinity": {}},
    "annotations": MAP,
    "ephemeralStorage": "1Gi",
    "gpuResource": "example.com/gpu",
    "gpus": 8,
    "idleTimeoutSeconds": 60,
    "key": "other",
    "labels": MAP,
    "maxReplicas": 8,
    "memory": "9Gi",
    "minReplicas": 1,
    "name": "other",
    "nodeSelector": MAP,
    "podAnnotations": MAP,
    "podLabels": MAP,
    "rayResources": {"fast": 1},
    "rayStartParams": {"a": "b"},
    "resources": {"requests": {"cpu": "1"}},
    "runtimeClassName": "other",
    "scratchSize": "3Gi",
    "sessionSize": "3Gi",
    "terminationGracePeriodSeconds": 600,
    "tolerations": [{"operator": "Exists"}],
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "a", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
    ],
}
"""Value, or its last word → what it becomes. A number that is not here becomes 1 more, a switch the other."""

BESIDE: dict[str, dict[str, Any]] = {
    "config.auth.oidc.jwks_file": {"config": {"auth": {"oidc": {"jwks_url": None}}}},
    "tls.certManager.enabled": {"tls": {"existingSecret": "", "certManager": {"issuerName": "internal"}}},
}
"""What has to change with a value."""

README = (CHART / "README.md").read_text()
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
CHART_VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
DEFAULTS: dict[str, Any] = {"auth.allow_plaintext": False, "auth.recheck_s": 10.0, "auth.oidc.leeway_s": 30.0}
"""Defaults of sections that are off."""
GROUP = {"minimal": "cpu", "gpu": "l4"}
"""The group of scorers of a value set whose values change."""


def keys(schema: dict[str, Any], path: str) -> Iterator[str]:
    """Yields what a part of the schema knows, by its innermost names."""
    for name, below in schema["properties"].items():
        if "properties" in below:
            yield from keys(below, f"{path}.{name}")
        else:
            yield f"{path}.{name}"


def every_value() -> Iterator[str]:
    """Yields each value of the chart, of a group of scorers, and of the service."""
    table = README.partition("<!-- values -->")[2]
    for name in re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE):
        if name.partition(".")[0] not in ("config", "head", "gateway", "scorerGroups"):
            yield name
    for name, kinds in settings(ServiceConfig):
        if not any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds):
            yield f"config.{name}"
    for group in ("head", "gateway"):
        yield from keys(SCHEMA["properties"][group], group)
    yield from keys(SCHEMA["$defs"]["scorerGroup"], "scorerGroups.*")


VALUES = sorted(every_value())


def nearest(value: str, names: Iterable[str]) -> str | None:
    """Returns the longest name of the value or of what it lies below."""
    return max((name for name in names if f"{value}.".startswith(f"{name}.")), key=len, default=None)


def rows() -> dict[str, str]:
    """Returns name → what the README says of its change."""
    section = README.partition("\n## Upgrades\n")[2].partition("\n## ")[0]
    found = {}
    for names, outcome in re.findall(r"^\| (.*?) \| (.*) \|$", section, re.MULTILINE):
        for name in re.findall(r"`([\w.*]+)`", names):
            assert name not in found, name
            found[name] = outcome
    return found


def nested(path: list[str], value: Any) -> dict[str, Any]:
    """Returns a value inside mappings."""
    first, *rest = path
    return {first: nested(rest, value) if rest else value}


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Returns mappings merged, as helm does."""
    both = {key: merged(below[key], above[key]) for key in below.keys() & above.keys() if isinstance(above[key], dict)}
    return {**below, **above, **both}


def default(value: str) -> Any:
    """Returns what a value is where nobody sets it."""
    found = ServiceConfig().model_dump() if value.startswith("config.") else CHART_VALUES
    for key in value.removeprefix("config.").replace("*", "cpu").split("."):
        if not isinstance(found, dict) or key not in found:
            section = nearest(value.removeprefix("config."), DEFAULTS)
            return None if section is None else DEFAULTS[section]
        found = found[key]
    return found


def other(value: str) -> Any:
    """Returns another value."""
    word = value.rpartition(".")[2]
    for name in (value, word):
        if name in AFTER:
            return AFTER[name]
    now = default(value)
    assert isinstance(now, int | float), f"say in AFTER what {value} becomes"
    return not now if isinstance(now, bool) else now + 1


def renderings(value: str) -> tuple[Rendering, Rendering]:
    """Returns what helm renders before and after the change of a value."""
    values, around = BEFORE.get(nearest(value, BEFORE) or "", ("minimal", {}))
    path = [GROUP[values] if word == "*" else word for word in value.split(".")]
    change = merged(BESIDE.get(value, {}), nested(path, other(value)))
    return render(values, around), render(values, merged(around, change))


@pytest.mark.slow
@pytest.mark.parametrize("value", VALUES)
def test_the_readme_says_what_a_change_does(value: str) -> None:
    name = nearest(value, rows())
    assert name is not None, f"the README does not say what happens where {value} changes"
    outcome, (before, after) = rows()[name], renderings(value)
    is_same = compared(before.cluster) == compared(after.cluster)

    assert is_same == (not outcome.startswith(("a second cluster", "another RayService"))), outcome
    assert (before.one("RayService")["metadata"]["name"] != after.one("RayService")["metadata"]["name"]) == (
        outcome.startswith("another RayService")
    )
    assert (before.objects != after.objects) == (value != "allowInsecure")
    if before.of("PersistentVolumeClaim") and after.of("PersistentVolumeClaim"):
        kept = [
            {key: claim["spec"].get(key) for key in ("accessModes", "storageClassName")}
            for claim in (before.one("PersistentVolumeClaim"), after.one("PersistentVolumeClaim"))
        ]
        assert (kept[0] != kept[1]) == outcome.startswith("refused by Kubernetes")


def test_the_readme_names_only_values_that_there_are() -> None:
    assert [name for name in rows() if all(nearest(value, [name]) is None for value in VALUES)] == []
