"""The pods of a rendering as processes of this machine, started as KubeRay starts them.

What KubeRay adds to the templates is added here: `ray start` with their parameters, the address of the head, Ray's
token. Mounts become folders, so paths below them are rewritten, and so is process 1, because a pod's first process is
any here; every port of Ray is a free one, because all pods share this machine.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from contextlib import closing, suppress
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any

import psutil

from tests.helm.rendering import Rendering
from tests.service.conftest import wait_until

_START_TIMEOUT_S = 120
_END_TIMEOUT_S = 10.0
_OBJECT_STORE_BYTES = 100 << 20


def free_port(first: int = 7601, last: int = 9999) -> int:
    """Returns a port of this range, which the chart allows, that nobody listens on."""
    for port in range(first + secrets.randbelow(1000), last):
        with closing(socket.socket()) as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port
    raise OSError(f"no port between {first} and {last} is free")


class Pods:
    """The Ray cluster of a rendering on this machine; `stop` ends what it started, and nothing else.

    Args:
        rendering: what helm rendered.
        folder: where its mounts are; a short path, because Ray's sockets lie below.
    """

    def __init__(self, rendering: Rendering, folder: Path) -> None:
        assert rendering.cluster["authOptions"]["mode"] == "token"
        self._rendering = rendering
        self._folder = folder
        self._token = secrets.token_hex(32)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._groups: list[str] = []
        self._keepers: list[threading.Thread] = []
        self._gcs, self.dashboard = _any_port(), _any_port()
        mounts = [
            mount["mountPath"] for group in rendering.templates for mount in rendering.container(group)["volumeMounts"]
        ]
        # The longest first: mounts lie within mounts.
        self._mounts = sorted(set(mounts), key=len, reverse=True)
        for path in self._mounts:
            self.path(path).mkdir(parents=True, exist_ok=True)

    def path(self, mounted: str) -> Path:
        """Returns where a path of a pod is on this machine."""
        return Path(self.relocated(mounted))

    def relocated(self, text: str) -> str:
        """Returns a text whose mounted paths are those of this machine."""
        places = {path: f"\0{number}\0" for number, path in enumerate(self._mounts)}
        for path, mark in places.items():
            text = text.replace(path, mark)
        for path, mark in places.items():
            text = text.replace(mark, f"{self._folder}{path}")
        return text

    def environment(self, group: str) -> dict[str, str]:
        """Returns the environment of a group's container, with what KubeRay adds."""
        rendered = {item["name"]: self.relocated(item["value"]) for item in self._rendering.container(group)["env"]}
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PRECEPTOR_"))}
        added = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token, "RAY_ADDRESS": f"127.0.0.1:{self._gcs}"}
        return {**inherited, "PATH": programs, **rendered, **added}

    def start(self) -> None:
        """Starts the head, waits for it as KubeRay does, and starts a pod for each replica of each group."""
        head = self._rendering.cluster["headGroupSpec"]["rayStartParams"]
        ports = {"port": self._gcs, "dashboard-port": self.dashboard, "ray-client-server-port": _any_port()}
        self._start("head", {**head, **ports, "dashboard-host": "127.0.0.1"}, "--head")
        wait_until(self._has_head, "the head answers", _START_TIMEOUT_S)
        for name, group in self._rendering.groups.items():
            for _ in range(group["replicas"]):
                self._start(name, {**group["rayStartParams"], "address": f"127.0.0.1:{self._gcs}"})
                # One after the other: Ray gives each 30 s, and all at once they take longer on a small machine.
                wait_until(self._has_started, f"a pod of {name} has started", _START_TIMEOUT_S)
        wait_until(self._has_dashboard, "the dashboard answers", _START_TIMEOUT_S)

    def _start(self, group: str, parameters: dict[str, Any], *flags: str) -> None:
        ours = {
            "node-ip-address": "127.0.0.1",
            "metrics-export-port": _any_port(),
            "dashboard-agent-listen-port": _any_port(),
            "object-store-memory": _OBJECT_STORE_BYTES,
        }
        # Through bash and without more quotes, as KubeRay does: quotes belong to the parameters.
        words = [*flags, "--block", *(f"--{name}={value}" for name, value in {**parameters, **ours}.items())]
        environment = self.environment(group)
        own = " ".join(f"{name}={value.replace('/1/', '/$$/', 1)}" for name, value in _of_process_1(environment))
        process = subprocess.Popen(
            ["/bin/bash", "-c", f"{own} exec ray start {' '.join(words)}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        # A pipe, as between a container and what keeps its log; a file would let the writers overwrite each other.
        log = self._log(len(self._processes), group).open("wb", buffering=0)
        keeper = threading.Thread(target=_keep, args=(process.stdout, log))
        keeper.start()
        self._keepers.append(keeper)
        self._processes.append(process)
        self._groups.append(group)

    def _log(self, number: int, group: str) -> Path:
        return self._folder / f"{group}-{number}.log"

    def logs(self, group: str) -> str:
        """Returns what `kubectl logs` shows of the pods of a group."""
        return "".join(self._log(number, name).read_text() for number, name in enumerate(self._groups) if name == group)

    def _has_started(self) -> bool:
        number = len(self._processes) - 1
        log = self._log(number, self._groups[number]).read_text()
        assert self._processes[number].poll() is None, log
        return "Ray runtime started" in log

    def terminate(self, replica_pid: int) -> None:
        """Ends the pod with this replica as the kubelet does after its preStop, by SIGTERM, and waits for its end."""
        parents = {parent.pid for parent in psutil.Process(replica_pid).parents()}
        (pod,) = [process for process in self._processes if process.pid in parents]
        pod.send_signal(signal.SIGTERM)
        pod.wait(_START_TIMEOUT_S)

    def _has_head(self) -> bool:
        assert self._processes[0].poll() is None, self.logs("head")
        return not self.exec("head", ["ray", "health-check", "--address", f"127.0.0.1:{self._gcs}"]).returncode

    def _has_dashboard(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.dashboard}/api/gcs_healthz") as answer:
            return bool(answer.read() == b"success")
        return False

    def exec(self, group: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Runs a command in a pod, as `kubectl exec` would."""
        return subprocess.run(
            [self.relocated(word) for word in command],
            env=self.environment(group),
            capture_output=True,
            text=True,
            timeout=_START_TIMEOUT_S,
            check=False,
        )

    def stop(self) -> None:
        """Ends every process of every pod."""
        started: list[psutil.Process] = []
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                pod = psutil.Process(process.pid)
                started += [*pod.children(recursive=True), pod]
        # Nobody waits for a drain any more.
        _, left = psutil.wait_procs(started, timeout=0)
        for stubborn in left:
            with suppress(psutil.NoSuchProcess):
                stubborn.kill()
        for process in self._processes:
            process.wait(_END_TIMEOUT_S)
        for keeper in self._keepers:
            keeper.join(_END_TIMEOUT_S)


def _keep(said: BufferedReader, log: RawIOBase) -> None:
    with said, log:
        while part := said.read1():
            log.write(part)


def _of_process_1(environment: dict[str, str]) -> list[tuple[str, str]]:
    """Returns the variables that name a file of a pod's first process."""
    return [(name, value) for name, value in environment.items() if value.startswith("/proc/1/")]


def _any_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
