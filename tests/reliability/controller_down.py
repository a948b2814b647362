"""Proof `controller-down`: Serve's controller, and then Ray's GCS, are away for minutes while trainers go on.

The controller is stopped by SIGSTOP: killed, Ray would have it back in seconds. The GCS is stopped so, and then killed
and started again from its RocksDB files, which is what makes a Ray survive that.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks.results import Figure
from benchmarks.suite import Measured
from tests.reliability.served import CONTROLLER, GCS, SCORER, Served, serve, wait_until
from tests.reliability.steady_load import Load, steady_load

SCORERS, TRAINERS = 2, 4
_WHOLE_S, _SHORT_S = 300.0, 15.0
_READY_S = 240.0
_STEPS_AFTER = 20
_SAY_EVERY_S = 30.0
_PORT = "--gcs_server_port="


@dataclass(frozen=True)
class Outage:
    """One of them: what it is called, and the block in which something is away."""

    name: str
    away: Callable[[Served], Any]


@contextmanager
def _stopped(title: str, served: Served) -> Iterator[None]:
    [pid] = served.pids(title)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # what follows tells whether it is missed
            os.kill(pid, signal.SIGCONT)


class Gcs:
    """The GCS, killed and started again as it was."""

    def __init__(self) -> None:
        self._again: subprocess.Popen[bytes] | None = None

    @contextmanager
    def killed(self, served: Served) -> Iterator[None]:
        """Kills it, and starts it again at the end of the block."""
        [pid] = served.pids(GCS)
        process = psutil.Process(pid)
        [port] = {each.laddr.port for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN}
        # Ray had it choose a port, and all others know that one.
        command = [f"{_PORT}{port}" if word.startswith(_PORT) else word for word in process.cmdline()]
        environment, folder = process.environ(), process.cwd()
        process.kill()
        try:
            yield
        finally:
            self._again = subprocess.Popen(
                command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )

    def stop(self) -> None:
        """Ends the one that was started again."""
        if self._again is not None:
            self._again.kill()
            self._again.wait()


def _survivable(folder: Path) -> dict[str, str]:
    """What makes a Ray outlive its GCS: where that keeps its state, and how long the others wait for it."""
    (folder / "gcs").mkdir()
    return {
        "RAY_gcs_storage": "rocksdb",
        "RAY_gcs_storage_path": str(folder / "gcs"),
        "RAY_gcs_rpc_server_reconnect_timeout_s": "1800",
    }


def run(short: bool, seconds: float | None = None) -> Measured:
    """Runs the proof; `seconds` is how long each is away."""
    seconds = seconds or (_SHORT_S if short else _WHOLE_S)
    console, gcs = Console(), Gcs()
    outages = (
        Outage("controller stopped", lambda served: _stopped(CONTROLLER, served)),
        Outage("GCS stopped", lambda served: _stopped(GCS, served)),
        Outage("GCS killed", gcs.killed),
    )
    with tempfile.TemporaryDirectory(prefix="preceptor-gcs-", ignore_cleanup_errors=True) as folder:
        try:
            with serve(SCORERS, environ=_survivable(Path(folder))) as served:
                wait_until(lambda: served.running_scorers() == SCORERS, "two scorers run", _READY_S)
                return _measured(served, outages, seconds, console)
        finally:
            gcs.stop()


def _measured(served: Served, outages: tuple[Outage, ...], seconds: float, console: Console) -> Measured:
    figures: list[Figure] = []
    raw: dict[str, Any] = {"seconds": seconds}
    with steady_load(served.target, TRAINERS) as load:
        load.traffic.wait_for_steps(_STEPS_AFTER, _READY_S)
        for outage in outages:
            console.print(f"  {outage.name} for {seconds:g} s")
            with load.traffic.mark(outage.name), outage.away(served):
                _wait(seconds, load, console)
            load.traffic.wait_for_steps(_STEPS_AFTER, _READY_S)
        raw["scorer_replaced_s"] = _replaced_s(served)
    record = load.traffic.so_far()
    for mark in record.marks:
        around = record.around(mark)
        pushes = load.pushes_in(mark.began_s, mark.ended_s)
        failed = [push for push in pushes if push.error is not None]
        figures += [
            Figure(f"{mark.name}: steps", len(around), ""),
            Figure(f"{mark.name}: failed steps", len(record.errors(mark, margin_s=5.0)), "", 0),
            Figure(f"{mark.name}: fallbacks", sum(step.is_fallback for step in around), "", 0),
            Figure(f"{mark.name}: longest wait", max((step.latency_s for step in around), default=seconds), "s"),
            Figure(f"{mark.name}: pushes committed", len(pushes) - len(failed), ""),
            Figure(f"{mark.name}: pushes that failed, saying why", len(failed), ""),
            Figure(f"{mark.name}: longest push", max((push.took_s for push in pushes), default=0.0), "s"),
        ]
        raw[mark.name] = {
            "errors": [step.error for step in record.errors(mark, margin_s=5.0)][:10],
            "failed_pushes": sorted({str(push.error) for push in failed})[:10],
        }
    figures.append(Figure("answers that differ from the undisturbed run", load.different(record), "", 0))
    figures.append(Figure("a scorer killed afterwards is replaced within", raw["scorer_replaced_s"], "s", _READY_S))
    return figures, raw


def _wait(seconds: float, load: Load, console: Console) -> None:
    """Waits, and says every now and then how far it is."""
    began, pause = time.monotonic(), threading.Event()
    while (left_s := began + seconds - time.monotonic()) > 0:
        pause.wait(min(left_s, _SAY_EVERY_S))
        record = load.traffic.so_far()
        console.print(
            f"  {time.monotonic() - began:5.0f} s  {len(record.steps)} steps, {len(record.errors())} failed; "
            f"{len(load.pushes)} pushes"
        )


def _replaced_s(served: Served) -> float:
    """Kills a scorer once all is back, and returns how long it takes until there are two again."""
    began = time.monotonic()
    victim = served.pids(SCORER)[0]
    os.kill(victim, signal.SIGKILL)
    with suppress(TimeoutError):
        wait_until(
            lambda: len(set(served.pids(SCORER)) - {victim}) == SCORERS and served.running_scorers() == SCORERS,
            "there are two scorers again",
            _READY_S + 30,
        )
    return time.monotonic() - began
