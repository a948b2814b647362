"""Hosts of our own: network namespaces on one bridge, each with a Ray node. Nothing of them is outside this machine."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SUBNET = "10.213.77"
GCS_PORT = 6399
RAY_METRICS_PORT = 8090
_END_TIMEOUT_S = 20.0
_NAMESPACES = Path("/etc/netns")
"""`ip netns exec` puts what lies here in a folder of the namespace's name over the files of /etc."""


def ip(*arguments: str) -> None:
    """Runs `ip`, and raises with what it said where it fails."""
    ended = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=30)
    if ended.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {ended.stderr.strip()}")


def can_make_hosts() -> bool:
    """Whether this user may make network namespaces here."""
    if os.geteuid() != 0:
        return False
    name = f"preceptor-{secrets.token_hex(3)}"
    try:
        ip("netns", "add", name)
    except (OSError, RuntimeError):
        return False
    ip("netns", "delete", name)
    return True


@dataclass
class Host:
    """One network namespace with one address, and the processes that were started in it."""

    namespace: str
    address: str
    environment: dict[str, str]
    log: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *command: str, **options: object) -> subprocess.Popen[str]:
        """Starts a command on this host; what it prints goes to the host's log unless `options` say otherwise."""
        with self.log.open("a") as log:
            process: subprocess.Popen[str] = subprocess.Popen(  # type: ignore[call-overload]
                ["ip", "netns", "exec", self.namespace, *command],
                env=self.environment,
                text=True,
                start_new_session=True,
                **{"stdout": log, "stderr": subprocess.STDOUT, **options},
            )
        self.started.append(process)
        return process

    def start_ray(self, *options: str) -> subprocess.Popen[str]:
        """Starts a Ray node here; the process ends with it, or where Ray gives up."""
        ray = str(Path(sys.executable).with_name("ray"))
        fixed = [f"--node-ip-address={self.address}", f"--metrics-export-port={RAY_METRICS_PORT}"]
        return self.start(ray, "start", "--block", *fixed, "--disable-usage-stats", *options)

    def processes(self) -> list[psutil.Process]:
        """Everything that runs on this host."""
        told = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False, timeout=30
        )
        found = []
        for pid in map(int, told.stdout.split()):
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    def know(self, name: str, addresses: Sequence[str]) -> None:
        """Lets what is started here from now on find `name` at `addresses`."""
        folder = _NAMESPACES / self.namespace
        folder.mkdir(parents=True, exist_ok=True)
        known = Path("/etc/hosts").read_text()
        (folder / "hosts").write_text("\n".join([known, *(f"{address} {name}" for address in addresses), ""]))

    def lose(self) -> None:
        """Ends everything on this host at once, as a power cut would."""
        deadline = time.monotonic() + _END_TIMEOUT_S
        while (left := self.processes()) and time.monotonic() < deadline:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            psutil.wait_procs(left, timeout=1)
        for started in self.started:
            started.wait(_END_TIMEOUT_S)
            for pipe in (started.stdin, started.stdout, started.stderr):
                if pipe is not None:
                    pipe.close()
        self.started.clear()

    def remove(self) -> None:
        """Ends everything, and removes the namespace and its names."""
        with ExitStack() as leaving:  # each, whatever becomes of the one before
            leaving.callback(_forget_names, self.namespace)
            leaving.callback(ip, "netns", "delete", self.namespace)
            self.lose()


def _forget_names(namespace: str) -> None:
    shutil.rmtree(_NAMESPACES / namespace, ignore_errors=True)
    with suppress(OSError):  # others', or none
        _NAMESPACES.rmdir()


class Network:
    """A bridge with hosts on it, in a namespace of its own; `close` removes all of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mark = secrets.token_hex(2)
        self._token = secrets.token_hex(32)
        self._hub = f"preceptor-{self._mark}-hub"
        self.hosts: list[Host] = []
        ip("netns", "add", self._hub)
        ip("-n", self._hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", self._hub, "link", "set", "bridge", "up")

    def add(self, name: str, **environment: str) -> Host:
        """Adds a host."""
        namespace, number = f"preceptor-{self._mark}-{name}", len(self.hosts) + 1
        address = f"{SUBNET}.{number}"
        ours = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "RAY_worker_niceness": "0",
            "RAY_metrics_report_interval_ms": "1000",
            "OMP_NUM_THREADS": "1",
        }
        host = Host(namespace, address, {**os.environ, **ours, **environment}, self._folder / f"{name}.log")
        ip("netns", "add", namespace)
        self.hosts.append(host)
        ip("-n", namespace, "link", "add", "eth0", "type", "veth", "peer", "name", f"to-{name}", "netns", self._hub)
        ip("-n", self._hub, "link", "set", f"to-{name}", "master", "bridge", "up")
        ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
        ip("-n", namespace, "link", "set", "lo", "up")
        ip("-n", namespace, "link", "set", "eth0", "up")
        return host

    def close(self) -> None:
        """Ends every process and removes every namespace."""
        with ExitStack() as leaving:
            leaving.callback(ip, "netns", "delete", self._hub)
            for host in self.hosts:
                leaving.callback(host.remove)
