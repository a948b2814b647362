"""Values that would not work, or would let strangers in, are refused with words that name the value and the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.binaries import HELMS
from tests.helm.rendering import RefusedError, render

NO_TLS: dict[str, Any] = {"config": {"tls": None}, "tls": {"existingSecret": ""}}
NO_AUTH: dict[str, Any] = {"config": {"auth": None}, "auth": {"existingSecret": ""}}
GPU_GROUP = {"cpu": None, "gpu": {"cpus": 8, "memory": "32Gi", "gpus": 1}}


def scorer(**settings: Any) -> dict[str, Any]:
    """Values that change only config.scorer."""
    return {"config": {"scorer": settings}}


REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    # Strangers.
    "nobody asked": (NO_AUTH, ("config.auth is empty", "allowInsecure")),
    "tokens in the clear": (NO_TLS, ("config.auth without config.tls", "allow_plaintext")),
    "a certificate that is not there": (
        {"tls": {"existingSecret": ""}},
        ("config.tls.certificate", "tls.existingSecret", "tls.certManager.enabled"),
    ),
    "a certificate for nothing": ({"config": {"tls": None}}, ("config.tls is empty", "tls.existingSecret")),
    "two certificates": (
        {"tls": {"certManager": {"enabled": True, "issuerName": "i"}}},
        ("tls.existingSecret is preceptor-tls", "choose one"),
    ),
    "an issuer without a name": (
        {"tls": {"existingSecret": "", "certManager": {"enabled": True}}},
        ("tls.certManager.issuerName",),
    ),
    "a key elsewhere": (
        {"config": {"tls": {"private_key": "/keys/tls.key"}}},
        ("config.tls.private_key is /keys/tls.key", "extraVolumeMounts"),
    ),
    "an authority that is not there": (
        {
            "config": {"tls": {"client_ca": "/etc/preceptor/client-ca/ca.crt"}},
            "tls": {"probe": {"certificateSecret": "p"}},
        },
        ("config.tls.client_ca", "tls.clientCaSecret"),
    ),
    "probes without a certificate": (
        {"config": {"tls": {"client_ca": "/etc/preceptor/tls/ca.crt"}}},
        ("config.tls.client_ca", "tls.probe.certificateSecret"),
    ),
    "an access file that is not there": (
        {"auth": {"existingSecret": ""}},
        ("config.auth.access_file", "auth.existingSecret", "auth.grants"),
    ),
    "an access file for nothing": ({"config": {"auth": None}}, ("config.auth is empty", "auth.existingSecret")),
    "two access files": (
        {"auth": {"grants": {"groups": {"a": {}}}}},
        ("auth.existingSecret is preceptor-access", "choose one"),
    ),
    "tokens in values": ({"auth": {"existingSecret": "", "grants": {"tokens": {}}}}, ("tokens",)),
    "OIDC that grants nothing": (
        {
            "auth": {"existingSecret": "", "grants": {"identities": {}}},
            "config": {
                "auth": {"oidc": {"issuer": "https://a.example", "audience": "p", "jwks_url": "https://a.example/k"}}
            },
        },
        ("auth.grants grants nobody anything", "identities"),
    ),
    "plaintext to the world": (
        {
            "config": {"tls": None, "auth": {"allow_plaintext": True}},
            "tls": {"existingSecret": ""},
            "service": {"type": "LoadBalancer"},
        },
        ("service.type is LoadBalancer without config.tls",),
    ),
    "Ray without its token": ({"ray": {"auth": {"mode": "disabled"}}}, ("ray.auth.mode is disabled", "allowInsecure")),
    "Ray open to every pod": (
        {"ray": {"auth": {"mode": "disabled"}}, "networkPolicy": {"enabled": False}, "allowInsecure": True},
        ("networkPolicy.enabled is false",),
    ),
    "a Redis for everybody": (
        {"ray": {"gcsFaultTolerance": {"enabled": True, "redisAddress": "redis:6379"}}},
        ("ray.gcsFaultTolerance.passwordSecret.name",),
    ),
    "a password in values": (
        {"ray": {"gcsFaultTolerance": {"enabled": True, "redisAddress": "redis:6379", "password": "x"}}},
        ("password",),
    ),
    "a policy for everybody": ({"networkPolicy": {"trainers": []}}, ("trainers",)),
    "no way for KubeRay": ({"networkPolicy": {"operator": []}}, ("networkPolicy.operator is empty", "namespace")),
    "metrics behind a policy for nobody": (
        {"podMonitor": {"enabled": True}},
        ("podMonitor.enabled", "networkPolicy.prometheus is empty"),
    ),
    "a peer that is everybody": ({"networkPolicy": {"operator": [{}]}}, ("operator",)),
    # What would not run.
    "a Redis without an address": ({"ray": {"gcsFaultTolerance": {"enabled": True}}}, ("redisAddress",)),
    "a gateway that nobody reaches": (
        {"config": {"gateway": {"host": "127.0.0.1"}}},
        ("config.gateway.host is 127.0.0.1", "0.0.0.0"),
    ),
    "a gateway anywhere": (
        {"config": {"gateway": {"resources": None}}},
        ("config.gateway.resources is empty", "preceptor_gateway"),
    ),
    "no gateways": ({"config": {"gateway": None}}, ("gateway",)),
    "a port among Ray's workers": ({"config": {"gateway": {"port": 10500}}}, ("config.gateway.port is 10500", "10002")),
    "a port for root": ({"config": {"metrics": {"port": 443}}}, ("config.metrics.port is 443", "1024")),
    "a port of Ray": ({"config": {"metrics": {"port": 8080}}}, ("config.metrics.port is 8080", "choose another")),
    "one port for two": ({"config": {"metrics": {"port": 7600}}}, ("both 7600",)),
    "metrics that nobody reads": (
        {"podMonitor": {"enabled": True}, "config": {"metrics": {"host": "127.0.0.1"}}},
        ("podMonitor.enabled", "config.metrics.host"),
    ),
    "no Ray": ({"config": {"pool": "in-process"}}, ("config.pool is in-process",)),
    "a store for each pod": (
        {"persistence": {"enabled": False}},
        ("persistence.enabled is false", "extraVolumeMounts"),
    ),
    "a relative store": ({"config": {"weights": {"path": "store"}}}, ("config.weights.path is store", "absolute")),
    "a cache on the image's own root": (
        {"config": {"weights": {"path": "s3://bucket/weights", "cache_path": "cache"}}},
        ("config.weights.cache_path is cache", "absolute"),
    ),
    "a claim besides an object store": (
        {"config": {"weights": {"path": "s3://bucket/weights"}}, "persistence": {"existingClaim": "c"}},
        ("persistence.existingClaim c",),
    ),
    "tables for nobody": (
        {"referenceLosses": {"existingClaim": "tables"}},
        ("referenceLosses.existingClaim is tables", "config.reference_losses.directory is empty"),
    ),
    "tables over the store": (
        {
            "config": {"reference_losses": {"directory": "/var/lib/preceptor/store"}},
            "referenceLosses": {"existingClaim": "tables"},
        },
        ("config.reference_losses.directory is /var/lib/preceptor/store", "of its own"),
    ),
    "tables at a relative path": (
        {"config": {"reference_losses": {"directory": "tables"}}, "referenceLosses": {"existingClaim": "tables"}},
        ("config.reference_losses.directory is tables", "absolute"),
    ),
    "probes that trust a file that is not there": (
        {"tls": {"probe": {"authority": "/keys/ca.crt"}}},
        ("tls.probe.authority is /keys/ca.crt", "extraVolumeMounts"),
    ),
    "an old Ray": ({"ray": {"version": "2.59.1"}}, ("ray.version is 2.59.1", "2.60")),
    "no scorers": ({"scorerGroups": {"cpu": None}}, ("scorerGroups is empty",)),
    "too few pods": (scorer(replicas=3), ("hold 1 scorers", "asks for 3")),
    "CPUs too small": (scorer(num_cpus=8), ("hold 0 scorers",)),
    "GPUs that nobody uses": (
        {"scorerGroups": GPU_GROUP},
        ("scorerGroups.gpu has GPUs", "config.scorer.num_gpus is 0"),
    ),
    "a GPU for nobody": (scorer(device="cuda"), ("config.scorer.device is cuda", "config.scorer.num_gpus is 0")),
    "a GPU for a processor": (
        {**scorer(device="cpu", num_gpus=1), "scorerGroups": GPU_GROUP},
        ("config.scorer.device is cpu", "config.scorer.num_gpus to 0"),
    ),
    "GPUs that nobody has": (scorer(num_gpus=1), ("hold 0 scorers",)),
    "a resource that nobody offers": (scorer(resources={"fast": 1}), ("asks for fast", "rayResources.fast")),
    "autoscaling without a bound": (
        {**scorer(max_replicas=4), "scorerGroups": {"cpu": {"maxReplicas": None}}},
        ("scorerGroups.cpu.maxReplicas",),
    ),
    "autoscaling beyond the pods": (scorer(max_replicas=4), ("hold 1 scorers", "asks for 4")),
    "a bound below the start": (
        {**scorer(replicas=2, max_replicas=1), "scorerGroups": {"cpu": {"maxReplicas": 4}}},
        ("config.scorer.max_replicas is 1", "which is 2"),
    ),
    "bounds in the wrong order": (
        {**scorer(max_replicas=1), "scorerGroups": {"cpu": {"minReplicas": 2}}},
        ("maxReplicas is 1, below minReplicas 2",),
    ),
    "an end before the drain": (
        {"gateway": {"terminationGracePeriodSeconds": 40}},
        ("gateway.terminationGracePeriodSeconds is 40", "raise it to 45"),
    ),
    "an autoscaler that reaches nobody": (
        {**scorer(max_replicas=1), "networkPolicy": {"egress": {"enabled": True}}},
        ("API server", "networkPolicy.egress.rules"),
    ),
    "a route to nowhere": ({"grpcRoute": {"enabled": True}}, ("grpcRoute.parentRefs",)),
    "a long name": ({"fullnameOverride": "p" * 48}, ("has 48 characters", "47", "fullnameOverride")),
    "a name that begins with a digit": ({"fullnameOverride": "9lives"}, ("9lives", "begin with a letter")),
    "a load balancer whose callers the policies keep out": (
        {"service": {"type": "LoadBalancer"}},
        ("service.type is LoadBalancer", "networkPolicy.trainers", "ipBlock"),
    ),
    "a claim for one pod": ({"persistence": {"accessModes": ["ReadWriteOncePod"]}}, ("accessModes",)),
    "no pod in the only group": ({"scorerGroups": {"cpu": {"replicas": 0}}}, ("hold 0 scorers", "asks for 1")),
    "no memory": ({"gateway": {"memory": "0Gi"}}, ("memory",)),
    "a renewal before the certificate": (
        {
            "tls": {
                "existingSecret": "",
                "certManager": {"enabled": True, "issuerName": "i", "duration": "30m90s", "renewBefore": "1h"},
            }
        },
        ("tls.certManager.renewBefore is 1h", "30m90s"),
    ),
    "a scrape longer than its interval": (
        {"podMonitor": {"enabled": True, "interval": "15s", "scrapeTimeout": "1m"}},
        ("podMonitor.scrapeTimeout is 1m", "15s"),
    ),
    "a label of ours on every object": (
        {"commonLabels": {"app.kubernetes.io/part-of": "mine"}},
        ("commonLabels names app.kub",),
    ),
    "a label of ours on gateways": (
        {"gateway": {"podLabels": {"app.kubernetes.io/component": "mine"}}},
        ("gateway.podLabels names app.kubernetes.io/component", "another prefix"),
    ),
    "a label of Ray on scorers": (
        {"scorerGroups": {"cpu": {"podLabels": {"ray.io/group": "mine"}}}},
        ("scorerGroups.cpu.podLabels",),
    ),
    "two clusters with one key space": (
        {
            "ray": {
                "gcsFaultTolerance": {
                    "enabled": True,
                    "redisAddress": "redis:6379",
                    "passwordSecret": {"name": "redis"},
                    "externalStorageNamespace": "mine",
                }
            }
        },
        ("ray.gcsFaultTolerance.externalStorageNamespace", "ray.upgradeStrategy"),
    ),
    # What the schema does not know.
    "an unknown key": ({"replicas": 3}, ("replicas",)),
    "an unknown key of a group": ({"scorerGroups": {"cpu": {"replica": 3}}}, ("replica",)),
    "a typo in a section": ({"config": {"gateway": {"prot": 7600}}}, ("gateway", "prot")),
    "a section that is not there": ({"config": {"gatway": {"port": 7600}}}, ("config", "gatway")),
    "a typo below an optional section": (
        {"config": {"auth": {"oidc": {"isuer": "https://a.example", "audience": "p"}}}},
        ("oidc", "isuer"),
    ),
    "a setting out of its range": ({"config": {"tracing": {"sample_ratio": 2}}}, ("sample_ratio", "1")),
    "no gateway": ({"config": {"gateway": {"replicas": 0}}}, ("replicas", " 1")),
    "no scorer": (scorer(replicas=0), ("replicas", " 1")),
    "a setting of another type": ({"config": {"weights": {"keep_versions": "many"}}}, ("keep_versions", "integer")),
    "a group named like ours": ({"scorerGroups": {"gateway": {"cpus": 1, "memory": "1Gi"}}}, ("gateway",)),
    "a group without memory": ({"scorerGroups": {"more": {"cpus": 1}}}, ("memory",)),
    "memory that is no quantity": ({"gateway": {"memory": "much"}}, ("memory",)),
    "a tag that moves": ({"image": {"tag": "latest"}}, ("tag",)),
    "a digest that is none": ({"image": {"digest": "sha256:abc"}}, ("digest",)),
    "an upgrade that Preceptor cannot follow": (
        {"ray": {"upgradeStrategy": "NewClusterWithIncrementalUpgrade"}},
        ("upgradeStrategy",),
    ),
    "root": ({"securityContext": {"runAsUser": 0}}, ("runAsUser",)),
}


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_is_refused(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    for helm in HELMS:
        with pytest.raises(RefusedError) as refusal:
            render(changes=changes, helm=helm)
        assert [word for word in words if word not in str(refusal.value)] == [], refusal.value


ACCEPTED: dict[str, dict[str, Any]] = {
    "a closed network without credentials": {**NO_AUTH, "allowInsecure": True},
    "callers known by certificate alone": {
        "config": {"auth": None, "tls": {"client_ca": "/etc/preceptor/tls/ca.crt"}},
        "auth": {"existingSecret": ""},
        "tls": {"probe": {"certificateSecret": "probe"}},
    },
    "TLS ended by a mesh": {"config": {"tls": None, "auth": {"allow_plaintext": True}}, "tls": {"existingSecret": ""}},
    "a store on a volume of one's own": {
        "persistence": {"enabled": False},
        "extraVolumes": [{"name": "nfs", "nfs": {"server": "nfs.example", "path": "/weights"}}],
        "extraVolumeMounts": [{"name": "nfs", "mountPath": "/var/lib/preceptor"}],
    },
    "a key on a volume of one's own": {
        "config": {"tls": {"certificate": "/keys/tls.crt", "private_key": "/keys/tls.key"}},
        "tls": {"existingSecret": "", "probe": {"authority": "/keys/ca.crt"}},
        "extraVolumes": [{"name": "keys", "csi": {"driver": "secrets.example"}}],
        "extraVolumeMounts": [{"name": "keys", "mountPath": "/keys", "readOnly": True}],
    },
    "fractions of a GPU": {**scorer(replicas=4, num_gpus=0.25, num_cpus=2), "scorerGroups": GPU_GROUP},
    "a resource that a group offers": {
        **scorer(resources={"fast": 1}),
        "scorerGroups": {"cpu": {"rayResources": {"fast": 1}}},
    },
    "a name of 47 characters": {"fullnameOverride": "p" * 47},
    "a load balancer whose callers the policies let in": {
        "service": {"type": "LoadBalancer"},
        "networkPolicy": {"trainers": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
    },
    "a load balancer without policies": {"service": {"type": "LoadBalancer"}, "networkPolicy": {"enabled": False}},
    "no authority for clients": {"config": {"tls": {"client_ca": None}}},
    "half a gibibyte": {"head": {"memory": "0.5Gi"}},
    "a key space of one's own for one cluster": {
        "ray": {
            "upgradeStrategy": "None",
            "gcsFaultTolerance": {
                "enabled": True,
                "redisAddress": "redis:6379",
                "passwordSecret": {"name": "redis"},
                "externalStorageNamespace": "mine",
            },
        }
    },
}


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED)
def test_is_accepted(changes: dict[str, Any]) -> None:
    assert all(render(changes=changes, helm=helm).objects for helm in HELMS)
