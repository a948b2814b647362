"""A service whose Ray nodes are hosts of their own, with room for one gateway and one scorer each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.hosts import GCS_PORT, Host
from tests.reliability.served import GATEWAY, SCORER, wait_until

PORT, METRICS_PORT = 7600, 9464
TRIES = 3
"""Of a Ray node, which gives its agent 15 s to start: on a busy machine not enough."""
_START_S = 200.0


def start_node(host: Host, head: Host) -> None:
    """Starts a Ray node; again where Ray gives up, as KubeRay would.

    Raises:
        RuntimeError: Ray gave up every time.
    """
    place = ["--head", f"--port={GCS_PORT}", "--include-dashboard=false"]
    if host is not head:
        place = [f"--address={head.address}:{GCS_PORT}"]
    offers = json.dumps({"preceptor_gateway": 1, "preceptor_scorer": 1})
    for _ in range(TRIES):
        told = len(host.log.read_text()) if host.log.exists() else 0
        ray = host.start_ray(*place, "--num-cpus=2", f"--resources={offers}", "--object-store-memory=100000000")
        wait_until(
            lambda: "Ray runtime started" in host.log.read_text()[told:] or ray.poll() is not None,  # noqa: B023
            f"Ray starts on {host.address}",
            _START_S,
        )
        if ray.poll() is None:
            return
    raise RuntimeError(f"Ray on {host.address} gave up {TRIES} times: {host.log.read_text()[-2000:]}")


def serve(hosts: Sequence[Host], folder: Path, scorer: dict[str, Any]) -> None:
    """Starts a node on each host, the head on the first, and the service on all; returns once it serves.

    `scorer` are settings of its section.
    """
    head = hosts[0]
    settings = {
        "gateway": {
            "host": "0.0.0.0",
            "port": PORT,
            "replicas": len(hosts),
            "resources": {"preceptor_gateway": 1},
        },
        "metrics": {"host": "0.0.0.0", "port": METRICS_PORT},
        "scorer": {**scorer, "replicas": len(hosts), "resources": {"preceptor_scorer": 1}},
        "weights": {"path": str(folder / "store")},
    }
    config = folder / "preceptor.yaml"
    config.write_text(yaml.safe_dump(settings))
    for host in hosts:
        start_node(host, head)
    head.environment["RAY_ADDRESS"] = f"{head.address}:{GCS_PORT}"
    head.start(sys.executable, "-m", "preceptor_service", "serve", "--config", str(config))
    for title in (GATEWAY, SCORER):
        wait_until(lambda: all(titled(host, title) for host in hosts), f"each node has a {title}", _START_S)  # noqa: B023
    wait_until(lambda: "is serving" in head.log.read_text(), "the service is ready", _START_S)


def titled(host: Host, title: str) -> list[psutil.Process]:
    """The replicas of one deployment on one host, or what else has that title."""
    found = []
    for process in host.processes():
        try:
            if " ".join(process.cmdline()).startswith(title):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def metric(host: Host, name: str, port: int = METRICS_PORT, **labels: str) -> float:
    """The sum of the samples of that name and labels at the gateway of `host`, asked from that host.

    Raises:
        CalledProcessError: nobody answers there.
    """
    url = f"http://{host.address}:{port}/metrics"
    asked = f"import urllib.request as r, sys; sys.stdout.write(r.urlopen({url!r}, timeout=10).read().decode())"
    told = subprocess.run(
        ["ip", "netns", "exec", host.namespace, sys.executable, "-c", asked],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return sum(
        sample.value
        for family in text_string_to_metric_families(told.stdout)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
