"""`preceptor serve` on a Ray of its own, as a process whose parts a proof can kill by id."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.machine import ROOT
from preceptor import SelectionClient
from preceptor.errors import PreceptorError
from tests.reliability.reference_run import scorer_settings
from tests.service.conftest import Metrics

START_S = 300.0
_STOP_S = 120.0
_LINGER_S = 5.0
_PAUSE_S = 0.05

SCORER = "ray::ServeReplica:preceptor:Scorer"
GATEWAY = "ray::ServeReplica:preceptor:Gateway"
CONTROLLER = "ray::ServeController"
GCS = "gcs_server"


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Looks twenty times a second.

    Raises:
        TimeoutError: it did not come true within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"within {timeout_s:g} s it did not happen that {what}")
        pause.wait(_PAUSE_S)


def environment() -> dict[str, str]:
    """What child processes find this checkout by."""
    paths = [str(ROOT / "clients" / "python"), str(ROOT / "services"), str(ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


class Served:
    """A service in a process of its own; all its other processes descend from that one.

    Attributes:
        port, metrics_port: where it listens.
        pool: who runs the scorers.
    """

    def __init__(
        self,
        folder: Path,
        scorers: int,
        pool: str,
        gateway: dict[str, Any],
        environ: dict[str, str],
        architectures: dict[str, str],
        rules: dict[str, str],
        store: Path | None = None,
    ) -> None:
        self.port, self.metrics_port, self.pool = free_port(), free_port(), pool
        self._environ = environ
        self._log = folder / "log"
        self._config = folder / "preceptor.yaml"
        settings: dict[str, Any] = {
            "pool": pool,
            "gateway": {"host": "127.0.0.1", "port": self.port, **gateway},
            "metrics": {"host": "127.0.0.1", "port": self.metrics_port},
            "weights": {"path": str(store or folder / "store")},
            "scorer": scorer_settings(scorers),
            "architectures": architectures,
            "rules": rules,
        }
        self._config.write_text(yaml.safe_dump(settings))
        self._process = self._start()

    @property
    def target(self) -> str:
        """Where trainers connect."""
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it said."""
        return self._log.read_text(errors="replace")

    def wait_until_it_answers(self) -> None:
        """Returns once a gateway takes calls.

        Raises:
            RuntimeError: the process ended.
            TimeoutError: it takes too long.
        """
        wait_until(lambda: self._process.poll() is not None or self.answers(), "the service answers", START_S)
        if self._process.poll() is not None:
            raise RuntimeError(f"the service ended with {self._process.returncode}")

    def kill_and_start_again(self) -> None:
        """Kills the process of a service without Ray, and starts it on the same store."""
        self._process.kill()
        self._process.wait()
        self._process = self._start()

    @property
    def pid(self) -> int:
        """Its process; without Ray the only one."""
        return self._process.pid

    def stop(self) -> None:
        """Ends it and all of its processes."""
        process = self._process
        descendants = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _, left = psutil.wait_procs(descendants, timeout=_LINGER_S)
        for stubborn in left:
            stubborn.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "preceptor_service", "serve", "--config", str(self._config)],
                cwd=ROOT,
                env={**environment(), **self._environ},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def pids(self, title: str) -> list[int]:
        """The ids of its living processes whose command line begins with `title`, or whose program is called so."""
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                command = process.cmdline()
                is_meant = bool(command) and (command[0].startswith(title) or Path(command[0]).name == title)
                if is_meant and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
            except psutil.NoSuchProcess:
                continue
        return found

    def running_scorers(self) -> int:
        """How many scorers take micro-batches, as the gateway tells; 0 where it does not."""
        try:
            running = Metrics(f"http://127.0.0.1:{self.metrics_port}/metrics").value(
                "preceptor_scorers", state="running"
            )
        except OSError:
            return 0
        return 0 if math.isnan(running) else int(running)

    def answers(self) -> bool:
        """Whether a gateway takes calls."""
        try:
            with SelectionClient(self.target, timeout_s=2) as client:
                return client.is_serving()
        except PreceptorError:
            return False


@contextmanager
def serve(
    scorers: int,
    pool: str = "ray",
    environ: dict[str, str] | None = None,
    architectures: dict[str, str] | None = None,
    rules: dict[str, str] | None = None,
    store: Path | None = None,
    **gateway: Any,
) -> Iterator[Served]:
    """Runs the service on free ports until the end of the block, on an empty store or `store`.

    `gateway` are settings of its section.
    """
    with tempfile.TemporaryDirectory(prefix="preceptor-proof-", ignore_cleanup_errors=True) as folder:
        served = Served(Path(folder), scorers, pool, gateway, environ or {}, architectures or {}, rules or {}, store)
        try:
            served.wait_until_it_answers()
            yield served
        except BaseException:
            sys.stderr.write(served.log[-4000:])
            raise
        finally:
            served.stop()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
