"""Proof `redeploys`: the application is deployed again and again, each time otherwise configured, under load.

Serve replaces its replicas one after the other: gateways drain, scorers finish, trainers repeat what was not answered.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks.results import Figure
from benchmarks.suite import Measured
from preceptor_service.app import start_service
from preceptor_service.config import parse_config
from tests.reliability.reference_run import scorer_settings
from tests.reliability.served import free_port
from tests.reliability.steady_load import steady_load

SCORERS, TRAINERS = 2, 4
_WHOLE, _SHORT = 50, 2
_STEPS_BETWEEN = 10
_READY_S = 240.0
_NAME = "redeployed"


def run(short: bool, count: int | None = None) -> Measured:
    """Runs the proof on the Ray that this process uses, or on one of its own; `count` is how many redeploys."""
    count = count or (_SHORT if short else _WHOLE)
    console = Console()
    took_s: list[float] = []
    with tempfile.TemporaryDirectory(prefix="preceptor-redeploys-", ignore_cleanup_errors=True) as folder:
        settings: dict[str, Any] = {
            "name": _NAME,
            "gateway": {"host": "127.0.0.1", "port": free_port()},
            "metrics": {"enabled": False},
            "weights": {"path": str(Path(folder) / "store")},
            "scorer": scorer_settings(SCORERS),
        }
        service = start_service(parse_config(settings))
        try:
            # Not earlier: a Ray that is started here is made safe before Ray is imported.
            from ray import serve

            from preceptor_service.serve_app import build

            with steady_load(f"127.0.0.1:{service.ports.grpc}", TRAINERS) as load:
                seen = first = _replicas()
                load.traffic.wait_for_steps(_STEPS_BETWEEN, _READY_S)
                for number in range(1, count + 1):
                    changed = {**settings, "scorer": {**settings["scorer"], "model_bytes": (64 << 20) + number}}
                    began = time.monotonic()
                    with load.traffic.mark(f"redeploy {number}"):
                        serve.run(build(parse_config(changed).model_dump(mode="json")), name=_NAME, route_prefix=None)
                    took_s.append(time.monotonic() - began)
                    load.traffic.wait_for_steps(_STEPS_BETWEEN, _READY_S)
                    seen = seen | _replicas()
                    console.print(f"  {number} of {count}, in {took_s[-1]:.0f} s")
        finally:
            service.stop()
    record = load.traffic.so_far()
    failed = [push.error for push in load.pushes if push.error is not None]
    figures = [
        Figure("redeploys", count, ""),
        Figure("new processes of replicas", len(seen - first), "", count * (SCORERS + 1), "at least"),
        Figure("super-batches answered", len(record.steps) - len(record.errors()), ""),
        Figure("super-batches that failed", len(record.errors()), "", 0),
        Figure("fallbacks", sum(step.is_fallback for step in record.steps), "", 0),
        Figure("answers that differ from the undisturbed run", load.different(record), "", 0),
        Figure("longest wait of a trainer", max(step.latency_s for step in record.steps), "s"),
        Figure("pushes committed", len(load.pushes) - len(failed), ""),
        Figure("pushes that failed, saying why", len(failed), ""),
    ]
    raw = {
        "redeploy_s": took_s,
        "errors": [step.error for step in record.errors()][:20],
        "failed_pushes": sorted({str(error) for error in failed})[:20],
    }
    return figures, raw


def _replicas() -> set[tuple[int, float]]:
    """The processes of the application's replicas, each told by its id and when it began."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(f"ray::ServeReplica:{_NAME}:"):
                found.add((process.pid, process.create_time()))
    return found
