"""The proof `fuzz`: malformed messages on every surface end no process, are never UNKNOWN or INTERNAL, fill no memory.

Where a decoder can be run without a socket, most cases are; the figures say how many went over a socket.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.machine import ROOT
from benchmarks.processes import service
from benchmarks.results import Figure
from benchmarks.suite import Measured
from preceptor import Run, SelectionClient
from tests.reliability.mutation import case_random
from tests.reliability.socket_surfaces import RUN_ID, TRY_AGAIN, Surfaces
from tests.service import digits
from tests.service.conftest import Metrics

SEED = 20
"""The cases of another seed are others."""

DECODED = ("arrow", "safetensors")
ALLOWED = {
    *("OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"),
    *("ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", TRY_AGAIN),
}
"""What a malformed call may be answered."""

ALLOWED_OF_HTTP2 = {
    *ALLOWED,
    "closed",
    "reset",
    "open",
    "INTERNAL of gRPC",
    "UNAVAILABLE",
    "CANCELLED",
    "DEADLINE_EXCEEDED",
}
"""What a malformed connection may come to: gRPC closes, and gives these codes, before any of our code sees it."""

SURFACES = {
    # Surface: cases over a socket in the full form and in the short one, then cases without.
    "select-frames": (1_000_000, 400, 0, 0),
    "arrow": (50_000, 150, 950_000, 3000),
    "safetensors": (20_000, 60, 980_000, 1500),
    "push-order": (1_000_000, 150, 0, 0),
    "other-requests": (100_000, 200, 0, 0),
    "http2": (1_000_000, 300, 0, 0),
}
_AT_ONCE, _CONNECTIONS_AT_ONCE = 32, 192
"""Calls, and connections of broken HTTP/2: many of these stay open until nobody waits any more."""
_CONTROL_EVERY = 5000
_WARM = 200
_MANY = 10_000
_LOOK_S = 0.2
_DEADLINE_S = 10.0
_MIB = 1024 * 1024
_GROWTH_MIB = 256


@dataclass
class Outcome:
    """What came of one surface."""

    over_socket: int = 0
    decoded: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    deaths: int = 0
    wrong_controls: int = 0
    internals_shown: int = 0
    counted_internal: int = 0
    base_bytes: int = 0
    grown_bytes: int = 0
    seconds: float = 0.0
    samples: list[str] = field(default_factory=list)

    def note(self, number: int, code: str, shows: bool, allowed: set[str]) -> None:
        self.codes[code] += 1
        self.internals_shown += shows
        if (code not in allowed or shows) and len(self.samples) < 20:
            self.samples.append(f"case {number}: {code}{', shows internals' if shows else ''}")


def run(surfaces: Iterable[str], short: bool) -> Measured:
    """Sends what `SURFACES` says, to one service."""
    sizes = {name: SURFACES[name] for name in surfaces}
    return fuzz({name: (size[1], size[3]) if short else (size[0], size[2]) for name, size in sizes.items()})


def fuzz(sizes: dict[str, tuple[int, int]], seed: int = SEED) -> Measured:
    """Sends so many cases of each surface over a socket, and gives its decoder so many without."""
    outcomes = {name: Outcome() for name in sizes}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        with service(_SETTINGS) as running:
            asyncio.run(_over_sockets(running, sizes, seed, outcomes, progress))
        for name in DECODED:
            if sizes.get(name, (0, 0))[1]:
                _decode(name, seed, sizes[name][1], outcomes[name], progress)
    return _figures(sizes, outcomes), {
        "seed": seed,
        "surfaces": {name: vars(found) for name, found in outcomes.items()},
    }


_SETTINGS: dict[str, Any] = {
    "pool": "in-process",
    "gateway": {
        "window_bytes": 512 * 1024,
        "max_super_batch_bytes": 256 * 1024,
        "max_chunk_bytes": 64 * 1024,
        "max_super_batch_rows": 2000,
        "answer_cache_bytes": _MIB,
    },
    "scorer": {"micro_batch_rows": 16},
}


async def _over_sockets(
    running: dict[str, Any],
    sizes: dict[str, tuple[int, int]],
    seed: int,
    outcomes: dict[str, Outcome],
    progress: Progress,
) -> None:
    surfaces = Surfaces(running["grpc"])
    with SelectionClient(f"127.0.0.1:{running['grpc']}", timeout_s=60.0) as client:
        control = _Control(client)
        for name, (count, _) in sizes.items():
            found, began = outcomes[name], time.monotonic()
            task = progress.add_task(f"{name}, over a socket", total=count)
            for first in range(0, count, _CONTROL_EVERY):
                numbers = iter(range(first, min(first + _CONTROL_EVERY, count)))
                advance = partial(progress.advance, task)
                at_once = _CONNECTIONS_AT_ONCE if name == "http2" else _AT_ONCE
                sending = asyncio.gather(
                    *(_send(surfaces, name, seed, numbers, found, advance) for _ in range(at_once))
                )
                if not await _lives_through(sending, psutil.Process(running["gateway_pid"]), found, count):
                    return
                found.wrong_controls += not await asyncio.to_thread(control.is_right)
            found.seconds = round(time.monotonic() - began, 1)
            counted = await asyncio.to_thread(_counted_internal, running["metrics"])
            found.counted_internal = counted - sum(other.counted_internal for other in outcomes.values())
    await surfaces.close()


async def _lives_through(sending: asyncio.Future[Any], gateway: psutil.Process, found: Outcome, count: int) -> bool:
    """Waits for the end of `sending` with an eye on the gateway's memory; False where the gateway died."""
    while not sending.done():
        await asyncio.wait({sending}, timeout=_LOOK_S)
        resident = _resident_bytes(gateway)
        if resident is None:
            found.deaths += 1
            sending.cancel()
            return False
        if found.over_socket >= min(_WARM, count // 2):
            found.base_bytes = found.base_bytes or resident
            found.grown_bytes = max(found.grown_bytes, resident - found.base_bytes)
    await sending
    return True


async def _send(
    surfaces: Surfaces, name: str, seed: int, numbers: Iterator[int], found: Outcome, advance: Callable[[], None]
) -> None:
    """Sends cases until there is none left."""
    for number in numbers:
        for code, shows in await surfaces.surfaces[name](case_random(name, seed, number)):
            found.note(number, code, shows, _allowed(name))
        found.over_socket += 1
        advance()


def _allowed(surface: str) -> set[str]:
    return ALLOWED_OF_HTTP2 if surface == "http2" else ALLOWED


def _resident_bytes(process: psutil.Process) -> int | None:
    """Memory of a process; None where it is dead."""
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return None


def _counted_internal(port: int) -> int:
    metrics = Metrics(f"http://127.0.0.1:{port}/metrics")
    return round(sum(metrics.value("preceptor_errors_total", code=code) for code in ("INTERNAL", "UNKNOWN")))


class _Control:
    """A run that has to answer right whatever was sent just before."""

    def __init__(self, client: SelectionClient) -> None:
        self._learner, self._reference = digits.weights(1), digits.weights(2)
        self._run = self._made(client, "control")
        # Short: a trainer that says it has seen weights which do not exist is waited with, for each of its steps.
        self._made(client, RUN_ID, deadline_s=_DEADLINE_S)
        self._step = 0

    def _made(self, client: SelectionClient, name: str, **settings: Any) -> Run:
        run = client.create_run(digits.spec(name, **settings))
        run.push_reference(self._reference)
        run.push_weights(self._learner, step=0)
        return run

    def is_right(self) -> bool:
        self._step += 1
        batch = digits.candidates(self._step)
        selection = self._run.select(batch, sub_batch_size=8, step=self._step)
        wanted = digits.expected(self._run.spec, batch, self._learner, self._reference, count=8, step=self._step)
        return bool(selection.indices.tolist() == wanted)


def _decode(name: str, seed: int, count: int, found: Outcome, progress: Progress) -> None:
    """Runs the cases in a process that is started again after the case at which it died."""
    task, first, codes, began = (
        progress.add_task(f"{name}, decoder alone", total=count),
        0,
        found.codes,
        time.monotonic(),
    )
    paths = [str(ROOT / "clients" / "python"), str(ROOT / "services"), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.NamedTemporaryFile() as mark:
        mark.write(bytes(8))
        mark.flush()
        while first < count:
            arguments = [name, str(seed), str(first), str(count - first), mark.name]
            command = [sys.executable, "-W", "ignore", "-m", "tests.reliability.decoders", *arguments]
            last: dict[str, Any] = {"codes": {}, "grown": 0, "next": first, "samples": []}
            with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                try:
                    for line in process.stdout:
                        last = json.loads(line)
                        progress.update(task, completed=last["next"])
                finally:
                    process.kill()
            codes.update(last["codes"])
            found.samples += last["samples"]
            found.grown_bytes = max(found.grown_bytes, last["grown"])
            found.decoded += last["next"] - first
            first = last["next"]
            if first < count:
                (died_at,) = struct.unpack("<q", Path(mark.name).read_bytes())
                found.deaths += 1
                found.samples.append(f"case {died_at}: the decoder's process died")
                first = died_at + 1
    found.internals_shown += codes.pop("INTERNALS SHOWN", 0)
    found.seconds += round(time.monotonic() - began, 1)


def _figures(sizes: dict[str, tuple[int, int]], outcomes: dict[str, Outcome]) -> list[Figure]:
    figures = []
    for name, found in outcomes.items():
        over, decoded = sizes[name]
        figures.append(Figure(f"{name}: malformed", found.over_socket + found.decoded, "", over + decoded, "at least"))
        if decoded:
            figures.append(Figure(f"{name}: of these over a socket", found.over_socket, "", over, "at least"))
    every: Counter[str] = Counter()
    odd = 0
    for name, found in outcomes.items():
        every += found.codes
        odd += sum(count for code, count in found.codes.items() if code not in _allowed(name))
    # Of some hundred cases those under way take more than what would grow.
    growth_limit = _GROWTH_MIB if all(sum(counts) >= _MANY for counts in sizes.values()) else None
    return [
        *figures,
        Figure("process deaths", sum(found.deaths for found in outcomes.values()), "", 0),
        Figure("answered UNKNOWN or INTERNAL", every["UNKNOWN"] + every["INTERNAL"], "", 0),
        Figure("these by the service's own count", sum(o.counted_internal for o in outcomes.values()), "", 0),
        Figure("answered otherwise than a malformed call may be", odd, "", 0),
        Figure("answers that show the inside of the service", sum(o.internals_shown for o in outcomes.values()), "", 0),
        Figure("wrong selections in between", sum(found.wrong_controls for found in outcomes.values()), "", 0),
        Figure("most memory grown", max(o.grown_bytes for o in outcomes.values()) / _MIB, "MiB", growth_limit),
        Figure("broken HTTP/2 that gRPC itself answers INTERNAL", every["INTERNAL of gRPC"], ""),
    ]
