"""Where `chaos` takes place: on one Ray node of this machine, or on two hosts with a gateway and a scorer each."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from benchmarks.machine import ROOT
from tests.cluster.hosts import Host, Network
from tests.cluster.two_nodes import METRICS_PORT, PORT, metric, titled
from tests.cluster.two_nodes import serve as serve_on
from tests.reliability.reference_run import scorer_settings
from tests.reliability.served import GATEWAY, Served, environment, serve

NAME = "gateways.test"
"""What trainers on two hosts connect to."""
SCORERS = 2


class Layout(Protocol):
    """A service that runs, and where its trainers do.

    Attributes:
        hosts: how many, each with a gateway.
        target: where trainers connect.
    """

    hosts: int
    target: str

    def start(self, number: int, command: Sequence[str]) -> subprocess.Popen[Any]:
        """Starts a process, on the hosts by turns, which finds this checkout and has a pipe for its input."""

    def pids(self, title: str) -> list[int]:
        """The ids of the service's living processes of that title, on all hosts."""

    def busiest_gateway(self) -> int:
        """The id of the gateway that most trainers are connected to."""

    def running_gateways(self) -> int:
        """How many gateways answer."""

    def running_scorers(self) -> int:
        """How many scorers take micro-batches, as the gateway that knows the fewest tells."""


class OneNode:
    """One gateway and its scorers on one Ray node."""

    hosts = 1

    def __init__(self, served: Served) -> None:
        self._served = served
        self.target = served.target

    def start(self, number: int, command: Sequence[str]) -> subprocess.Popen[Any]:
        """Starts a process beside the service."""
        return subprocess.Popen(command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE)

    def pids(self, title: str) -> list[int]:
        """As the service has them."""
        return self._served.pids(title)

    def busiest_gateway(self) -> int:
        """The only one there is."""
        return self._served.pids(GATEWAY)[0]

    def running_gateways(self) -> int:
        """1 while it is there."""
        return len(self._served.pids(GATEWAY))

    def running_scorers(self) -> int:
        """As the gateway tells."""
        return self._served.running_scorers()


class TwoHosts:
    """Two Ray nodes in network namespaces of their own. On each host the own gateway comes first behind `NAME`."""

    hosts = 2
    target = f"{NAME}:{PORT}"

    def __init__(self, network: Network, folder: Path) -> None:
        path = environment()["PYTHONPATH"]
        self._hosts = [network.add(name, PYTHONPATH=path) for name in ("first", "second")]
        for host in self._hosts:
            own_first = sorted(self._hosts, key=lambda other: other is not host)
            host.know(NAME, [other.address for other in own_first])
        serve_on(self._hosts, folder, scorer_settings())

    def start(self, number: int, command: Sequence[str]) -> subprocess.Popen[Any]:
        """Starts a process; odd numbers on the second host."""
        host = self._hosts[number % len(self._hosts)]
        return host.start(*command, cwd=ROOT, stdin=subprocess.PIPE, stdout=None, stderr=None)

    def pids(self, title: str) -> list[int]:
        """Of both hosts."""
        return [process.pid for host in self._hosts for process in titled(host, title)]

    def busiest_gateway(self) -> int:
        """As they tell themselves."""
        host = max(self._hosts, key=lambda host: _told_by_gateway(host, "preceptor_select_streams") or 0)
        return titled(host, GATEWAY)[0].pid

    def running_gateways(self) -> int:
        """How many there are that tell their metrics."""
        told = [_told_by_gateway(host, "preceptor_select_streams") for host in self._hosts if titled(host, GATEWAY)]
        return sum(streams is not None for streams in told)

    def running_scorers(self) -> int:
        """The least that one of them tells."""
        return int(min(_told_by_gateway(host, "preceptor_scorers", state="running") or 0 for host in self._hosts))


def _told_by_gateway(host: Host, name: str, **labels: str) -> float | None:
    try:
        return metric(host, name, METRICS_PORT, **labels)
    except subprocess.CalledProcessError:
        return None


@contextmanager
def laid_out(hosts: int) -> Iterator[Layout]:
    """Runs the service with two scorers on so many hosts, 1 or 2, until the end of the block."""
    if hosts == 1:
        with serve(SCORERS) as served:
            yield OneNode(served)
        return
    with tempfile.TemporaryDirectory(prefix="preceptor-hosts-", ignore_cleanup_errors=True) as folder:
        network = Network(Path(folder))
        try:
            yield TwoHosts(network, Path(folder))
        except BaseException:
            for host in network.hosts:
                sys.stderr.write(host.log.read_text(errors="replace")[-4000:] if host.log.exists() else "")
            raise
        finally:
            network.close()
