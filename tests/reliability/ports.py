"""Which ports of a running `preceptor serve` answer another host: two network namespaces, one of them its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.machine import ROOT
from preceptor_service.access.access_file import new_token, token_hash
from tests.access.certificates import Authority
from tests.cluster.hosts import Host, Network, ip

_GATEWAY, _METRICS = 7600, 9464
_START_S = 120.0
_SCAN_S = 120.0
_PAUSE_S = 0.2

_LISTEN = "0A"
_ANY_OR_LOOPBACK = {"00000000": "0.0.0.0", "0100007F": "127.0.0.1", "0" * 32: "::", "0" * 24 + "01000000": "::1"}

_SCAN = """
import socket, sys
for port in range(1, 65536):
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((sys.argv[1], port)) == 0:
            print(port)
"""


@dataclass(frozen=True)
class Ports:
    """TCP ports of one service.

    Attributes:
        listening: all that a process of its tree listens on, by address.
        answering: all of 1 to 65535 that accept a connection from another host.
        wanted: that of the gateway and that of the metrics.
    """

    listening: frozenset[tuple[str, int]]
    answering: frozenset[int]
    wanted: frozenset[int] = frozenset({_GATEWAY, _METRICS})

    @property
    def unwanted(self) -> frozenset[int]:
        return self.answering - self.wanted

    def raw(self) -> dict[str, Any]:
        return {"listening": sorted(map(str, self.listening)), "answering": sorted(self.answering)}


def answering_ports(pool: str) -> Ports:
    """Starts a service as an operator would who wants it reached, with TLS and tokens, and scans it from elsewhere.

    Needs root.
    """
    with tempfile.TemporaryDirectory() as folder:
        network = Network(Path(folder))
        try:
            served, stranger = network.add("served"), network.add("stranger")
            path = os.pathsep.join(str(ROOT / part) for part in ("clients/python", "services", "."))
            served.environment = {**os.environ, "PYTHONPATH": path}
            # Where there is a way out, Ray takes the address of that way for its own.
            ip("-n", served.namespace, "route", "add", "default", "via", stranger.address)
            served.start(sys.executable, "-m", "preceptor_service", "serve", "--config", _config(Path(folder), pool))
            _wait_for(stranger, served)
            listening = _listening(served)
            told = subprocess.run(
                ["ip", "netns", "exec", stranger.namespace, sys.executable, "-c", _SCAN, served.address],
                capture_output=True,
                text=True,
                check=True,
                timeout=_SCAN_S,
            )
            return Ports(listening | _listening(served), frozenset(map(int, told.stdout.split())))
        finally:
            network.close()


def _config(folder: Path, pool: str) -> str:
    pair = Authority().issue()
    files: Mapping[str, bytes] = {"certificate": pair.certificate, "private_key": pair.private_key}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    access = {"tokens": {token_hash(new_token()): {"identity": "owner"}}}
    (folder / "access.yaml").write_text(yaml.safe_dump(access))
    settings = {
        "pool": pool,
        "gateway": {"host": "0.0.0.0", "port": _GATEWAY},
        "metrics": {"host": "0.0.0.0", "port": _METRICS},
        "tls": {name: str(folder / name) for name in files},
        "auth": {"access_file": str(folder / "access.yaml")},
        "weights": {"path": str(folder / "store")},
    }
    path = folder / "preceptor.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def _wait_for(stranger: Host, served: Host) -> None:
    """Waits until both ports answer `stranger`."""
    deadline, pause = time.monotonic() + _START_S, threading.Event()
    probe = "import socket, sys; [socket.create_connection((sys.argv[1], int(p)), 1).close() for p in sys.argv[2:]]"
    command = [sys.executable, "-c", probe, served.address, str(_GATEWAY), str(_METRICS)]
    while subprocess.run(
        ["ip", "netns", "exec", stranger.namespace, *command], capture_output=True, check=False
    ).returncode:
        if time.monotonic() > deadline or served.started[0].poll() is not None:
            raise RuntimeError(f"the service did not come up: {served.log.read_text()[-2000:]}")
        pause.wait(_PAUSE_S)


def _listening(host: Host) -> frozenset[tuple[str, int]]:
    """What the kernel lists as listening in the host's namespace, in which nothing but the service runs."""
    found = set()
    process = host.processes()[0].pid
    for family in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{family}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == _LISTEN:
                address, _, port = local.rpartition(":")
                found.add((_ANY_OR_LOOPBACK.get(address, address), int(port, 16)))
    return frozenset(found)
