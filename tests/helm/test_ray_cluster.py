"""The Ray cluster that is rendered: who runs where, how it is probed, how it ends, and what it may do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from preceptor_service.config import parse_config
from tests.helm.rendering import CHART, NAMESPACE, RELEASE, VALUES, Rendering, render

pytestmark = pytest.mark.parametrize("values", VALUES)

SELECTOR = {"app.kubernetes.io/instance": RELEASE, "app.kubernetes.io/part-of": "preceptor"}
SCRATCH = {"tmp", "ray-logs"}


def workers(rendering: Rendering) -> dict[str, Any]:
    """Group name → container of every group but the head."""
    return {name: rendering.container(name) for name in rendering.groups}


def paths(rendering: Rendering, group: str) -> dict[str, dict[str, Any]]:
    """Mount path → mount of a group's container."""
    return {mount["mountPath"]: mount for mount in rendering.container(group)["volumeMounts"]}


def test_the_head_runs_neither_gateway_nor_scorer(values: str) -> None:
    head = render(values).cluster["headGroupSpec"]

    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["rayStartParams"]["num-gpus"] == "0"
    assert "resources" not in head["rayStartParams"]
    assert not any(name.endswith("gpu") for name in render(values).container("head")["resources"]["limits"])


def test_there_is_one_pod_for_each_gateway_and_it_offers_what_one_gateway_takes(values: str) -> None:
    rendering = render(values)
    config = parse_config(rendering.config)
    group = rendering.groups["gateway"]

    assert [group[key] for key in ("replicas", "minReplicas", "maxReplicas")] == [config.gateway.replicas] * 3
    assert group["rayStartParams"]["num-cpus"] == "0"
    # KubeRay puts it into a command of bash as it is, so the quotes belong to it.
    offered = re.fullmatch(r"'(\{.*\})'", group["rayStartParams"]["resources"])
    assert offered is not None
    assert yaml.safe_load(offered[1]) == config.gateway.resources


def test_scorers_fit_where_they_shall_run(values: str) -> None:
    rendering = render(values)
    scorer = parse_config(rendering.config).scorer
    places = 0
    for name in rendering.groups.keys() - {"gateway"}:
        group, limits = rendering.groups[name], rendering.container(name)["resources"]["limits"]
        assert group["rayStartParams"]["num-cpus"] == limits["cpu"]
        assert group["rayStartParams"]["num-gpus"] == limits.get("nvidia.com/gpu", "0")
        by_cpu = float(limits["cpu"]) // scorer.num_cpus
        by_gpu = float(limits.get("nvidia.com/gpu", 0)) // scorer.num_gpus if scorer.num_gpus else by_cpu
        places += group["maxReplicas"] * int(min(by_cpu, by_gpu))

    assert places >= (scorer.max_replicas or scorer.replicas)


def test_pods_autoscale_exactly_where_scorers_do(values: str) -> None:
    rendering = render(values)
    is_autoscaling = parse_config(rendering.config).scorer.max_replicas is not None
    head = rendering.templates["head"]["spec"]

    assert rendering.cluster.get("enableInTreeAutoscaling", False) == is_autoscaling
    assert ("autoscalerOptions" in rendering.cluster) == is_autoscaling
    # KubeRay makes an account with the rights of an autoscaler where none is named.
    assert head["automountServiceAccountToken"] == is_autoscaling
    assert ("serviceAccountName" in head) != is_autoscaling
    for name in rendering.groups.keys() - {"gateway"}:
        group = rendering.groups[name]
        assert (group["minReplicas"] < group["maxReplicas"]) == is_autoscaling


def test_labels_are_ours_and_name_no_version(values: str) -> None:
    rendering = render(values)
    components = dict.fromkeys(rendering.groups, "scorer") | {"gateway": "gateway", "head": "head"}
    for name, template in rendering.templates.items():
        labels = template["metadata"]["labels"]
        assert SELECTOR.items() <= labels.items() or values == "multi-tenant"
        assert labels["app.kubernetes.io/component"] == components[name]
        assert not {"app.kubernetes.io/version", "helm.sh/chart"} & labels.keys()
        # KubeRay's Service for the head selects on the name that KubeRay gives it.
        assert ("app.kubernetes.io/name" in labels) == (name != "head")
        assert "annotations" not in template["metadata"]


def test_every_container_is_restricted(values: str) -> None:
    rendering = render(values)
    contexts = [rendering.container(name)["securityContext"] for name in rendering.templates]
    contexts += [options["securityContext"] for options in [rendering.cluster.get("autoscalerOptions")] if options]
    for context in contexts:
        assert context == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    for template in rendering.templates.values():
        pod = template["spec"]["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert min(pod["runAsUser"], pod["runAsGroup"], pod["fsGroup"]) > 0
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & template["spec"].keys()
        assert "initContainers" not in template["spec"]


def test_only_the_autoscaler_gets_a_token_of_kubernetes(values: str) -> None:
    rendering = render(values)
    for name in rendering.groups:
        assert rendering.templates[name]["spec"]["automountServiceAccountToken"] is False
    for account in rendering.of("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_replicas_log_where_kubectl_looks(values: str) -> None:
    rendering = render(values)
    for name in rendering.templates:
        environment = {item["name"]: item.get("value") for item in rendering.container(name)["env"]}
        assert environment["PRECEPTOR_LOG_TO"] == "/proc/1/fd/2"
        # Process 1 is the container's own, and of the same user, so that this file may be opened.
        assert not {"hostPID", "shareProcessNamespace"} & rendering.templates[name]["spec"].keys()
        assert "runAsUser" not in rendering.container(name)["securityContext"]


def test_what_is_written_has_a_volume(values: str) -> None:
    rendering = render(values)
    for name in rendering.templates:
        environment = {item["name"]: item.get("value") for item in rendering.container(name)["env"]}
        assert {environment[key] for key in ("HOME", "TMPDIR", "RAY_TMPDIR")} == {"/var/tmp"}
        volumes = {volume["name"]: volume for volume in rendering.templates[name]["spec"]["volumes"]}
        assert {paths(rendering, name)[path]["name"] for path in ("/var/tmp", "/var/tmp/ray")} == SCRATCH
        assert all(volumes[scratch]["emptyDir"]["sizeLimit"] for scratch in SCRATCH)
        assert {mount["name"] for mount in paths(rendering, name).values()} == volumes.keys()


def test_gateways_and_scorers_share_one_store(values: str) -> None:
    rendering = render(values)
    store = str(parse_config(rendering.config).weights.path)
    cache = str(parse_config(rendering.config).weights.cache_path)
    is_remote = ":/" in store
    for name in rendering.groups:
        assert (store in paths(rendering, name)) != is_remote
        assert (cache in paths(rendering, name)) == is_remote
    assert store not in paths(rendering, "head")
    assert bool(rendering.of("PersistentVolumeClaim")) == (not is_remote and values != "air-gapped")


def test_only_gateways_hold_keys_and_the_access_file(values: str) -> None:
    rendering = render(values)
    config = parse_config(rendering.config)
    assert config.tls is not None
    assert config.auth is not None
    files = [config.tls.certificate, config.tls.private_key, config.auth.access_file]
    files += [config.tls.client_ca] if config.tls.client_ca else []
    for file in files:
        mount = paths(rendering, "gateway")[str(Path(file).parent)]
        assert mount["readOnly"] is True
        assert "subPath" not in mount
    for name in rendering.templates.keys() - {"gateway"}:
        assert not any(path.startswith("/etc/preceptor") for path in paths(rendering, name))


def test_gateways_are_probed_by_grpc_health(values: str) -> None:
    rendering = render(values)
    container = rendering.container("gateway")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        command = container[probe]["exec"]["command"]
        assert command[:4] == ["preceptor", "health", "--target", f"127.0.0.1:{rendering.config['gateway']['port']}"]
        assert "--tls" in command
        name = command[command.index("--tls-name") + 1]
        assert name.endswith(f".{NAMESPACE}.svc")
        for option in ("--tls-ca", "--tls-certificate", "--tls-key"):
            if option in command:
                file = Path(command[command.index(option) + 1])
                assert str(file.parent) in paths(rendering, "gateway")
        assert ("--tls-certificate" in command) == bool(rendering.config["tls"].get("client_ca"))
        # The command gives up by itself first, and says why.
        assert container[probe]["timeoutSeconds"] > 5


def test_a_gateway_that_gives_way_to_another_version_is_not_killed_for_it(values: str) -> None:
    rendering = render(values)
    liveness = rendering.container("gateway")["livenessProbe"]

    assert (
        liveness["periodSeconds"] * liveness["failureThreshold"] > parse_config(rendering.config).gateway.drain_s + 120
    )


def test_no_worker_is_left_to_the_probe_of_a_proxy_that_does_not_run(values: str) -> None:
    rendering = render(values)
    for name, container in workers(rendering).items():
        assert "readinessProbe" in container
        assert "livenessProbe" in container
        if name != "gateway":
            assert "52365/api/local_raylet_healthz" in container["readinessProbe"]["exec"]["command"][-1]
        assert "8000" not in str([container["readinessProbe"], container["livenessProbe"]])


def test_pods_end_after_what_they_accepted_and_scorers_and_head_after_gateways(values: str) -> None:
    rendering = render(values)
    drain_s = parse_config(rendering.config).gateway.drain_s
    grace_s = {name: item["spec"]["terminationGracePeriodSeconds"] for name, item in rendering.templates.items()}
    drain_node_s, wait_s = {}, {}
    for name in rendering.templates:
        container = rendering.container(name)
        environment = {item["name"]: item["value"] for item in container["env"]}
        program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
        assert program == "/bin/sleep"
        wait_s[name], drain_node_s[name] = int(seconds), int(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert wait_s[name] + drain_node_s[name] < grace_s[name]
    # Serve begins to stop a replica when the deadline leaves its graceful timeout, which is 5 s more for gateways.
    assert drain_node_s["gateway"] - (drain_s + 5) > 0
    for name in rendering.groups.keys() - {"gateway"}:
        assert wait_s[name] + drain_node_s[name] - drain_s > grace_s["gateway"]
    assert wait_s["head"] >= grace_s["gateway"]
    assert drain_node_s["head"] == 0


def test_ports_are_below_those_of_rays_workers(values: str) -> None:
    rendering = render(values)
    ports = {
        name: {port["name"]: port["containerPort"] for port in rendering.container(name)["ports"]}
        for name in rendering.templates
    }
    config = parse_config(rendering.config)

    assert all(1024 <= port < 10000 for named in ports.values() for port in named.values())
    assert ports["gateway"] == {"grpc": config.gateway.port, "gateway-metrics": config.metrics.port, "metrics": 8080}
    assert ports["head"] == {"gcs-server": 6379, "dashboard": 8265, "metrics": 8080, "serve": 8000}
    assert all(len(name) <= 15 for named in ports.values() for name in named)


def test_workers_are_spread(values: str) -> None:
    rendering = render(values)
    for name in rendering.groups:
        template = rendering.templates[name]
        spread = template["spec"]["topologySpreadConstraints"]
        assert {item["topologyKey"] for item in spread} == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        for item in spread:
            assert item["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_ray_wants_a_token_and_is_the_version_that_ci_installs(values: str) -> None:
    cluster = render(values).cluster
    pins = dict(
        line.split("==") for line in (CHART.parents[1] / "constraints.txt").read_text().splitlines() if "==" in line
    )

    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == pins["ray"]


def test_secrets_are_only_named(values: str) -> None:
    rendering = render(values)
    environment = [
        item
        for container in [rendering.container(name) for name in rendering.templates]
        for item in container.get("env", [])
    ]

    assert not rendering.of("Secret")
    assert not [item["name"] for item in environment if re.search("TOKEN|PASSWORD|SECRET|KEY", item["name"])]
    for options in [rendering.cluster.get("gcsFaultToleranceOptions", {})]:
        for key in {"redisPassword", "redisUsername"} & options.keys():
            assert options[key].keys() == {"valueFrom"}
            assert options[key]["valueFrom"].keys() == {"secretKeyRef"}
