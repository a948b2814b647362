"""The scrape settings that ship, against targets on this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.helm.rendering import NAMESPACE, render

COMPOSE = Path(__file__).resolve().parents[2] / "deploy" / "compose" / "prometheus.yml"
ScrapeConfig = dict[str, Any]


def of_compose(gateway: str) -> list[ScrapeConfig]:
    """Compose's, but for Prometheus' own job, with the gateway's address here."""
    (ours,) = (job for job in yaml.safe_load(COMPOSE.read_text())["scrape_configs"] if job["job_name"] != "prometheus")
    assert ours["static_configs"] == [{"targets": ["service:9464"]}]
    return [{**ours, "static_configs": [{"targets": [gateway]}]}]


def of_the_chart(gateway: str, ray_nodes: Sequence[str]) -> list[ScrapeConfig]:
    """The chart's PodMonitor, as Prometheus' operator translates it for the pods that the chart renders."""
    rendering = render("gpu", {"podMonitor": {"interval": "1s", "scrapeTimeout": "1s"}})
    monitor = rendering.one("PodMonitor")
    spec = monitor["spec"]
    assert spec["namespaceSelector"]["matchNames"] == [NAMESPACE]
    found = []
    for number, endpoint in enumerate(spec["podMetricsEndpoints"]):
        group, addresses = {"gateway-metrics": ("gateway", [gateway]), "metrics": ("head", ray_nodes)}[endpoint["port"]]
        assert endpoint["port"] in [port["name"] for port in rendering.container(group)["ports"]]
        pod = rendering.templates[group]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= pod.items()
        labels = {re.sub(r"\W", "_", label): pod[label] for label in spec["podTargetLabels"]}
        labels |= {
            "namespace": NAMESPACE,
            "job": pod[spec["jobLabel"]],
            "pod": f"{group}-0",
        }
        found.append(
            {
                "job_name": f"podMonitor/{NAMESPACE}/{monitor['metadata']['name']}/{number}",
                "metrics_path": endpoint["path"],
                "scrape_interval": endpoint["interval"],
                "scrape_timeout": endpoint["scrapeTimeout"],
                "static_configs": [{"targets": list(addresses), "labels": labels}],
            }
        )
    return found
