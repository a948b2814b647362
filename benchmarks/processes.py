"""Child processes of a benchmark: what is measured never shares an interpreter with who measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT
from benchmarks.null_model import ARCHITECTURES

_START_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 60.0


class Child:
    """A `python -m benchmarks.<module>` that speaks JSON lines: one at start, then one per request."""

    def __init__(self, module: str, *arguments: str) -> None:
        paths = [str(ROOT / "clients" / "python"), str(ROOT / "services"), str(ROOT)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.hello: dict[str, Any] = self._read(_START_TIMEOUT_S)

    def ask(self, timeout_s: float, **request: Any) -> dict[str, Any]:
        """Sends one request and returns its answer."""
        self.tell(**request)
        return self._read(timeout_s)

    def tell(self, **request: Any) -> None:
        """Sends one request."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def answer(self, timeout_s: float) -> dict[str, Any]:
        """Waits for the answer to `tell`."""
        return self._read(timeout_s)

    def stop(self) -> None:
        """Closes its input, on which it ends, and waits for that."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(_STOP_TIMEOUT_S)
        self.process.stdout.close()

    def _read(self, timeout_s: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        alarm = threading.Timer(timeout_s, self.process.kill)
        alarm.start()
        try:
            line = self.process.stdout.readline()
        finally:
            alarm.cancel()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended, or said nothing within {timeout_s:g} s")
        message: dict[str, Any] = json.loads(line)
        return message


@contextmanager
def child(module: str, *arguments: str) -> Iterator[Child]:
    """Runs a `Child` for the length of the block."""
    running = Child(module, *arguments)
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def service(settings: dict[str, Any], *, with_proxy: bool = False) -> Iterator[dict[str, Any]]:
    """Runs the service on free ports and an empty store, and yields its `grpc`, `metrics`, `gateway_pid` and `store`.

    Args:
        settings: sections of `ServiceConfig` on top of that.
        with_proxy: whether Serve's own gRPC proxy serves the same selection too, on port `proxy`.
    """
    with tempfile.TemporaryDirectory(prefix="preceptor-bench-", dir=ROOT / "benchmarks") as store:
        config = {
            "pool": "ray",
            "architectures": ARCHITECTURES,
            **settings,
            "gateway": {"host": "127.0.0.1", "port": 0, **settings.get("gateway", {})},
            "metrics": {"host": "127.0.0.1", "port": 0},
            "weights": {**settings.get("weights", {}), "path": str(Path(store))},
        }
        with child("serve", json.dumps(config), *(["--with-proxy"] if with_proxy else [])) as running:
            yield {**running.hello, "store": store}


def requests() -> Iterator[dict[str, Any]]:
    """Yields the requests to this child until its parent closes the pipe."""
    for line in sys.stdin:
        yield json.loads(line)


def say(**message: Any) -> None:
    """Sends one message to the parent of this child."""
    print(json.dumps(message), flush=True)
