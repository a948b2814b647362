"""Two Ray nodes on hosts of their own: gateways and scorers on both; one host is lost and comes back under load."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import RAY_METRICS_PORT, Host, Network, can_make_hosts
from tests.cluster.two_nodes import PORT, metric, serve, start_node, titled
from tests.prerequisites import lacking
from tests.ray.test_lost_scorer import wait_until
from tests.reliability.served import GATEWAY

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(280)]

RUN_ID = "shared"


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


def test_a_node_is_lost_and_comes_back_under_load(network: Network, tmp_path: Path) -> None:
    first, second = network.add("first"), network.add("second")
    serve((first, second), tmp_path, {"num_cpus": 0.1, "micro_batch_rows": 100})

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
