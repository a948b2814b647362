"""The objects around the Ray cluster: what they select, whom they let in, what they leave out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from preceptor_service.access.access_file import parse_access
from tests.helm.rendering import CHART, NAMESPACE, RELEASE, VALUES, Rendering, render


def selected(rendering: Rendering, selector: dict[str, str]) -> set[str]:
    """Returns the groups whose pods a selector finds."""
    return {
        name
        for name, template in rendering.templates.items()
        if selector.items() <= template["metadata"]["labels"].items()
    }


def scorers(rendering: Rendering) -> set[str]:
    """Returns the groups with scorers."""
    return rendering.groups.keys() - {"gateway"}


@pytest.mark.parametrize("values", VALUES)
def test_services_find_gateways_only_at_their_port(values: str) -> None:
    rendering = render(values)
    for service in rendering.of("Service"):
        assert selected(rendering, service["spec"]["selector"]) == {"gateway"}
        assert [port["targetPort"] for port in service["spec"]["ports"]] == ["grpc"]
        assert service["spec"]["ports"][0]["port"] == rendering.config["gateway"]["port"]


def test_a_headless_service_is_for_clients_that_balance_themselves() -> None:
    rendering = render("tls")
    headless = rendering.one("Service", f"{RELEASE}-preceptor-headless")

    assert headless["spec"]["clusterIP"] == "None"
    assert len(render("minimal").of("Service")) == 1


def test_a_load_balancer_says_who_may_use_it() -> None:
    spec = render("tls").one("Service", f"{RELEASE}-preceptor")["spec"]

    assert spec["type"] == "LoadBalancer"
    assert spec["loadBalancerSourceRanges"] == ["10.0.0.0/8"]
    assert spec["externalTrafficPolicy"] == "Local"


def test_whom_a_load_balancer_lets_through_the_policies_let_in() -> None:
    rendering = render("tls")
    sources = rendering.one("Service", f"{RELEASE}-preceptor")["spec"]["loadBalancerSourceRanges"]
    admitted = [
        peer["ipBlock"]["cidr"]
        for peers, ports in policies(rendering)["gateway"]
        for peer in peers
        if "ipBlock" in peer and ports == [rendering.config["gateway"]["port"]]
    ]

    assert sources
    assert admitted == sources


def test_a_route_leads_to_the_service() -> None:
    rendering = render("multi-tenant")
    route, service = rendering.one("GRPCRoute"), rendering.one("Service")
    (rule,) = route["spec"]["rules"]

    assert rule["backendRefs"] == [{"name": service["metadata"]["name"], "port": service["spec"]["ports"][0]["port"]}]
    assert route["spec"]["hostnames"] == ["selection.example.com"]


@pytest.mark.parametrize("values", VALUES)
def test_names_belong_to_the_release_and_its_namespace(values: str) -> None:
    rendering = render(values)
    name = rendering.one("RayService")["metadata"]["name"]
    for item in rendering.objects:
        assert item["metadata"]["name"].startswith(name)
        if item["kind"] != "ResourceQuota":
            assert item["metadata"]["namespace"] == NAMESPACE
            assert item["metadata"]["labels"]["app.kubernetes.io/instance"] == RELEASE
    assert len({(item["kind"], item["metadata"]["name"]) for item in rendering.objects}) == len(rendering.objects)


def test_of_two_labels_with_one_name_that_of_the_object_counts() -> None:
    changes = {"commonLabels": {"team": "all", "cost": "1"}, "service": {"labels": {"team": "vision"}}}
    rendering = render(changes=changes)

    assert rendering.one("Service")["metadata"]["labels"]["team"] == "vision"
    assert rendering.one("Service")["metadata"]["labels"]["cost"] == "1"
    assert rendering.one("RayService")["metadata"]["labels"]["team"] == "all"


def policies(rendering: Rendering) -> dict[str, list[tuple[Any, list[int]]]]:
    """Group → each (peers, ports) that may reach its pods; no ports: every port."""
    allowed: dict[str, list[tuple[Any, list[int]]]] = {name: [] for name in rendering.templates}
    for policy in rendering.of("NetworkPolicy"):
        for rule in policy["spec"]["ingress"]:
            for name in selected(rendering, policy["spec"]["podSelector"]["matchLabels"]):
                allowed[name].append((rule["from"], [port["port"] for port in rule.get("ports", [])]))
    return allowed


@pytest.mark.parametrize("values", VALUES)
def test_strangers_reach_nothing(values: str) -> None:
    rendering = render(values)
    config, given = rendering.config, yaml.safe_load((CHART / "values.yaml").read_text())["networkPolicy"]
    own = yaml.safe_load((CHART / "ci" / f"{values}-values.yaml").read_text()).get("networkPolicy", {})
    trainers, prometheus, operator = ({**given, **own}[key] for key in ("trainers", "prometheus", "operator"))
    us = [{"podSelector": {"matchLabels": release(rendering)}}]
    everywhere = [(us, []), *([(prometheus, [8080])] if prometheus else [])]
    allowed = policies(rendering)

    for name in scorers(rendering):
        assert allowed[name] == everywhere
    assert allowed["head"] == [*everywhere, (operator, [8265])]
    assert allowed["gateway"] == [
        *everywhere,
        (trainers, [config["gateway"]["port"]]),
        *([(prometheus, [config["metrics"]["port"]])] if prometheus else []),
    ]


@pytest.mark.parametrize("values", VALUES)
def test_a_label_alone_lets_no_pod_of_another_namespace_in_or_out(values: str) -> None:
    for policy in render(values).of("NetworkPolicy"):
        rules = [*policy["spec"]["ingress"], *policy["spec"].get("egress", [])]
        for peer in [peer for rule in rules for peer in [*rule.get("from", []), *rule.get("to", [])]]:
            assert peer.get("namespaceSelector", "none") != {}, policy["metadata"]["name"]


def release(rendering: Rendering) -> dict[str, str]:
    """Returns the labels that all pods of a release share."""
    head = rendering.templates["head"]["metadata"]["labels"]
    return {key: head[key] for key in ("app.kubernetes.io/instance", "app.kubernetes.io/part-of")}


def test_egress_is_closed_on_request() -> None:
    (ray,) = [
        policy for policy in render("air-gapped").of("NetworkPolicy") if "Egress" in policy["spec"]["policyTypes"]
    ]
    within, dns = ray["spec"]["egress"]

    assert "ports" not in within
    assert within["to"] == [{"podSelector": ray["spec"]["podSelector"]}]
    assert {(port["port"], port["protocol"]) for port in dns["ports"]} == {(53, "UDP"), (53, "TCP")}
    assert not [policy for policy in render("minimal").of("NetworkPolicy") if "Egress" in policy["spec"]["policyTypes"]]


def test_policies_go_only_by_an_explicit_false() -> None:
    assert len(render().of("NetworkPolicy")) == 3
    assert not render(changes={"networkPolicy": {"enabled": False}}).of("NetworkPolicy")


@pytest.mark.parametrize("values", VALUES)
def test_disruptions_leave_all_pods_but_one(values: str) -> None:
    rendering = render(values)
    found = {}
    for budget in rendering.of("PodDisruptionBudget"):
        assert "maxUnavailable" not in budget["spec"], "these pods have no controller that could be asked for its scale"
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        found[frozenset(selected(rendering, budget["spec"]["selector"]["matchLabels"]))] = budget["spec"][
            "minAvailable"
        ]
    least = {
        frozenset({"gateway"}): rendering.groups["gateway"]["minReplicas"] - 1,
        frozenset(scorers(rendering)): sum(rendering.groups[name]["minReplicas"] for name in scorers(rendering)) - 1,
    }

    assert found == {groups: minimum for groups, minimum in least.items() if minimum > 0}


def test_a_claim_outlives_the_release_unless_told_otherwise() -> None:
    claim = render().one("PersistentVolumeClaim")
    (volume,) = [item for item in render().templates["gateway"]["spec"]["volumes"] if item["name"] == "store"]
    fleeting = render(changes={"persistence": {"keep": False}}).one("PersistentVolumeClaim")

    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert "annotations" not in fleeting["metadata"]


def test_an_existing_claim_is_used_as_it_is() -> None:
    rendering = render("air-gapped")
    (volume,) = [item for item in rendering.templates["cpu"]["spec"]["volumes"] if item["name"] == "store"]

    assert volume["persistentVolumeClaim"]["claimName"] == "shared-weights"
    assert not rendering.of("PersistentVolumeClaim")


def test_an_object_store_is_reached_by_a_secret_or_by_the_account() -> None:
    by_account = render("multi-tenant")
    by_secret = render("multi-tenant", {"objectStore": {"credentialsSecret": "bucket"}})

    assert by_account.one("ServiceAccount")["metadata"]["annotations"] == {"example.com/role": "preceptor-weights"}
    for name in by_account.groups:
        assert (
            by_account.templates[name]["spec"]["serviceAccountName"]
            == by_account.one("ServiceAccount")["metadata"]["name"]
        )
        assert "envFrom" not in by_account.container(name)
        assert by_secret.container(name)["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    assert "envFrom" not in by_secret.container("head")


def test_a_certificate_names_every_way_to_the_gateways() -> None:
    rendering = render("tls")
    spec = rendering.one("Certificate")["spec"]
    services = {service["metadata"]["name"] for service in rendering.of("Service")}
    (volume,) = [item for item in rendering.templates["gateway"]["spec"]["volumes"] if item["name"] == "tls"]
    command = rendering.container("gateway")["readinessProbe"]["exec"]["command"]

    assert spec["secretName"] == volume["secret"]["secretName"]
    assert {f"{name}.{NAMESPACE}.svc" for name in services} | services | {"preceptor.example.com"} <= set(
        spec["dnsNames"]
    )
    assert command[command.index("--tls-name") + 1] in spec["dnsNames"]
    assert spec["issuerRef"] == {"group": "cert-manager.io", "kind": "ClusterIssuer", "name": "internal"}
    assert spec["privateKey"]["rotationPolicy"] == "Always"
    assert not render("minimal").of("Certificate")


def test_grants_in_values_become_an_access_file_that_the_service_reads() -> None:
    rendering = render("multi-tenant")
    (volume,) = [item for item in rendering.templates["gateway"]["spec"]["volumes"] if item["name"] == "auth"]
    access = rendering.one("ConfigMap")

    assert volume["configMap"]["name"] == access["metadata"]["name"]
    assert rendering.config["auth"]["access_file"].endswith("/access.yaml")
    # Raises where it cannot be used.
    parse_access(access["data"]["access.yaml"].encode(), Path("access.yaml"))


@pytest.mark.parametrize("values", ["gpu", "multi-tenant"])
def test_prometheus_scrapes_gateways_and_every_node_of_ray(values: str) -> None:
    rendering = render(values)
    monitor = rendering.one("PodMonitor")
    named = {
        endpoint["port"]: {
            name
            for name in selected(rendering, monitor["spec"]["selector"]["matchLabels"])
            if endpoint["port"] in {port["name"] for port in rendering.container(name)["ports"]}
        }
        for endpoint in monitor["spec"]["podMetricsEndpoints"]
    }

    assert named == {"gateway-metrics": {"gateway"}, "metrics": set(rendering.templates)}
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": [NAMESPACE]}


def test_rules_are_the_files_of_the_chart_with_links_to_runbooks() -> None:
    files = [yaml.safe_load(path.read_text()) for path in sorted((CHART / "rules").glob("*.yaml"))]
    groups = [group for file in files for group in file["groups"]]
    rendered = render("gpu").one("PrometheusRule")["spec"]["groups"]
    linked = render("gpu", {"runbookBaseUrl": "https://docs.example.com/v1/"}).one("PrometheusRule")
    links = [
        rule["annotations"]["runbook_url"]
        for group in linked["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]

    assert groups
    assert rendered == groups
    assert links
    assert all(link.startswith("https://docs.example.com/v1/docs/") for link in links)


def dashboards(rendering: Rendering) -> dict[str, Any]:
    """File name → dashboard, of each ConfigMap with one."""
    found = {}
    for item in rendering.of("ConfigMap"):
        assert item["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert item["metadata"]["annotations"] == {"grafana_folder": "Preceptor"}
        ((key, content),) = item["data"].items()
        found[key.removeprefix(f"{RELEASE}-preceptor-")] = json.loads(content)
    return found


def test_dashboards_are_the_files_of_the_chart_and_lead_to_the_runbooks() -> None:
    files = {path.name: json.loads(path.read_text()) for path in (CHART / "dashboards").glob("*.json")}
    for dashboard in files.values():
        (variable,) = [item for item in dashboard["templating"]["list"] if item["name"] == "runbooks"]
        variable["query"] = "https://docs.example.com/v1/docs/alerts.md"

    assert files
    assert dashboards(render("gpu", {"runbookBaseUrl": "https://docs.example.com/v1/"})) == files


def test_dashboards_have_no_dead_links_where_nobody_says_where_the_runbooks_are() -> None:
    files = {path.name: json.loads(path.read_text()) for path in (CHART / "dashboards").glob("*.json")}
    for dashboard in files.values():
        dashboard["links"] = [link for link in dashboard["links"] if link["type"] == "dashboards"]
        assert len(dashboard["links"]) == 1
        for panel in dashboard["panels"]:
            panel["links"] = []
    found = dashboards(render("gpu"))
    for dashboard in found.values():
        for panel in dashboard["panels"]:
            assert panel["links"] == []

    assert found == files


def test_what_needs_an_operator_of_its_own_is_off_until_asked_for() -> None:
    optional = {"PodMonitor", "PrometheusRule", "Certificate", "GRPCRoute"}

    assert not optional & {item["kind"] for item in render("minimal").objects}


def test_extra_objects_are_templates() -> None:
    assert render("multi-tenant").one("ResourceQuota")["metadata"]["name"] == "selection"
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: '{{ .Release.Name }}-more'}\n"
    assert render(changes={"extraObjects": [text]}).one("ConfigMap")["metadata"]["name"] == "demo-more"


def test_an_image_comes_from_the_mirror_by_its_digest() -> None:
    rendering = render("air-gapped")
    for name in rendering.templates:
        assert rendering.container(name)["image"].startswith("registry.internal:5000/mirror/preceptor@sha256:")
        assert rendering.templates[name]["spec"]["imagePullSecrets"] == [{"name": "registry-credentials"}]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert render("minimal").container("head")["image"] == f"preceptor:{chart['appVersion']}"


def test_state_in_redis_is_reached_by_secrets() -> None:
    assert render("gpu").cluster["gcsFaultToleranceOptions"] == {
        "redisAddress": "redis.databases.svc:6379",
        "redisUsername": {"valueFrom": {"secretKeyRef": {"name": "redis-user", "key": "username"}}},
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "redis-password", "key": "password"}}},
    }
    assert "gcsFaultToleranceOptions" not in render("minimal").cluster


def test_a_group_that_waits_has_no_pods_and_counts_for_no_budget() -> None:
    groups = {"cpu": {"replicas": 2}, "waiting": {"replicas": 0, "cpus": 4, "memory": "8Gi"}}
    rendering = render(changes={"scorerGroups": groups})
    (budget,) = rendering.of("PodDisruptionBudget")

    assert [rendering.groups["waiting"][key] for key in ("replicas", "minReplicas", "maxReplicas")] == [0, 0, 0]
    assert budget["spec"]["minAvailable"] == 1
