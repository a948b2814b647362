"""Two Ray nodes on hosts of their own: gateways and scorers on both; one host is lost and comes back under load."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.hosts import GCS_PORT, RAY_METRICS_PORT, Host, Network, can_make_hosts
from tests.prerequisites import lacking
from tests.ray.test_lost_scorer import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(280)]

PORT, METRICS_PORT = 7600, 9464
RUN_ID = "shared"
TRIES = 3
"""Of a Ray node, which gives its agent 15 s to start: on a busy machine not enough."""
SCORER = "ray::ServeReplica:preceptor:Scorer"
GATEWAY = "ray::ServeReplica:preceptor:Gateway"


class Trainer:
    """`tests.cluster.trainer` on a host; what it says is read by a thread of its own."""

    def __init__(self, host: Host, target: str, rank: int, *options: str) -> None:
        self.answers: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        self._process = host.start(
            sys.executable, "-m", "tests.cluster.trainer", target, RUN_ID, str(rank), *options,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._threads = [threading.Thread(target=read, daemon=True) for read in (self._read, self._listen)]
        for thread in self._threads:
            thread.start()

    def wait_for_more(self, count: int) -> None:
        """Waits until it has got `count` more answers."""
        goal = len(self.answers) + count
        wait_until(lambda: len(self.answers) >= goal or self._process.poll() is not None, f"answer {goal}")
        assert self._process.poll() is None, "".join(self.complaints)

    def end(self) -> list[dict[str, Any]]:
        """Ends it, and returns its answers."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        code = self._process.wait(100)
        for thread in self._threads:
            thread.join(10)
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()
        assert code == 0, "".join(self.complaints)
        return self.answers

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.answers.append(json.loads(line))

    def _listen(self) -> None:
        assert self._process.stderr is not None
        self.complaints += self._process.stderr


def titled(host: Host, title: str) -> list[psutil.Process]:
    """The replicas of one deployment on one host."""
    found = []
    for process in host.processes():
        try:
            if " ".join(process.cmdline()).startswith(title):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def metric(host: Host, name: str, port: int = METRICS_PORT, **labels: str) -> float:
    """The sum of the samples of that name and labels at the gateway of `host`, asked from that host."""
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


def requests_to_scorer(host: Host) -> float:
    """What the scorer of `host` was asked, as Ray's node there tells; 0 while it tells nothing yet."""
    try:
        return metric(host, "ray_serve_deployment_request_counter_total", RAY_METRICS_PORT, deployment="Scorer")
    except subprocess.CalledProcessError:
        return 0


def loading_s(host: Host) -> float:
    """How long micro-batches of the gateway of `host` waited for weights that a scorer did not hold."""
    assert metric(host, "preceptor_micro_batches_total", run=RUN_ID) > 0
    return metric(host, "preceptor_scorer_seconds_total", run=RUN_ID, part="load")


@pytest.fixture
def network(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    if not can_make_hosts():
        lacking("root and network namespaces (Debian package iproute2)")
    paths = [repository / "clients/python", repository / "services", repository]
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, paths)))
    network = Network(tmp_path)
    yield network
    network.close()


def start_node(host: Host, head: Host) -> None:
    """Starts a Ray node with room for one gateway and one scorer; again where Ray gives up, as KubeRay would."""
    place = ["--head", f"--port={GCS_PORT}", "--include-dashboard=false"]
    if host is not head:
        place = [f"--address={head.address}:{GCS_PORT}"]
    offers = json.dumps({"preceptor_gateway": 1, "preceptor_scorer": 1})
    for _ in range(TRIES):
        told = len(host.log.read_text()) if host.log.exists() else 0
        ray = host.start_ray(*place, "--num-cpus=2", f"--resources={offers}", "--object-store-memory=100000000")
        wait_until(
            lambda: "Ray runtime started" in host.log.read_text()[told:] or ray.poll() is not None,  # noqa: B023
            f"Ray on {host.address}",
        )
        if ray.poll() is None:
            return
    pytest.fail(f"Ray on {host.address} gave up {TRIES} times: {host.log.read_text()[-2000:]}")


def test_a_node_is_lost_and_comes_back_under_load(network: Network, tmp_path: Path) -> None:
    first, second = network.add("first"), network.add("second")
    settings = {
        "gateway": {
            "host": "0.0.0.0",
            "port": PORT,
            "replicas": 2,
            "resources": {"preceptor_gateway": 1},
        },
        "metrics": {"host": "0.0.0.0", "port": METRICS_PORT},
        "scorer": {"replicas": 2, "num_cpus": 0.1, "micro_batch_rows": 100, "resources": {"preceptor_scorer": 1}},
        "weights": {"path": str(tmp_path / "store")},
    }
    (tmp_path / "preceptor.yaml").write_text(yaml.safe_dump(settings))
    start_node(first, first)
    start_node(second, first)
    first.environment["RAY_ADDRESS"] = f"{first.address}:{GCS_PORT}"
    first.start(sys.executable, "-m", "preceptor_service", "serve", "--config", str(tmp_path / "preceptor.yaml"))

    wait_until(lambda: bool(titled(first, GATEWAY) and titled(second, GATEWAY)), "a gateway on each node")
    wait_until(lambda: bool(titled(first, SCORER) and titled(second, SCORER)), "a scorer on each node")
    wait_until(lambda: "is serving" in first.log.read_text(), "the service was ready")

    one = Trainer(first, f"{first.address}:{PORT}", 0, "ready")
    one.wait_for_more(20)
    other = Trainer(second, f"{second.address}:{PORT}", 1)
    other.wait_for_more(20)
    across = Trainer(second, f"{first.address}:{PORT}", 2)
    across.wait_for_more(20)

    for answer in other.end():
        assert (answer["is_right"], answer["is_fallback"], answer["version"]) == (True, False, 1)
    across.end()

    second.lose()
    one.wait_for_more(50)  # the scorer and the gateway over there are gone
    wait_until(lambda: metric(first, "preceptor_scorers", state="running") == 1, "the loss was noticed")
    one.wait_for_more(50)

    pusher = Trainer(first, f"{first.address}:{PORT}", 3, "push")
    pusher.wait_for_more(1)
    one.wait_for_more(50)
    assert {answer["version"] for answer in pusher.end()} == {one.answers[-1]["version"]} == {2}
    waited_s = loading_s(first)
    start_node(second, first)
    wait_until(lambda: metric(first, "preceptor_scorers", state="running") == 2, "the scorer came back")
    wait_until(lambda: bool(titled(second, GATEWAY)), "the gateway came back")
    wait_until(lambda: requests_to_scorer(second) >= 50, "the scorer that came back takes its share")
    again = Trainer(second, f"{second.address}:{PORT}", 4)
    again.wait_for_more(20)
    # It had loaded what was pushed in its absence before it was asked: nobody waited for weights.
    assert (loading_s(first), loading_s(second)) == (waited_s, 0)

    answers = one.end()
    versions = [answer["version"] for answer in answers]
    assert versions == sorted(versions)
    assert set(versions) == {1, 2}
    assert {answer["version"] for answer in again.end()} == {2}
    for answer in [*answers, *again.answers]:
        assert (answer["is_right"], answer["is_fallback"]) == (True, False)
