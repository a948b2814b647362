"""Proof `cancel`: trainers that give up at any moment, and trainers that are gone and never said so, leave nothing.

A call is given up by cancelling it, by a reset of its connection, or because what makes its requests breaks off. The
service runs in a process of its own, which tells when the last task and the last body of each call were gone
(`watched_service`).
"""

from __future__ import annotations

import itertools
import logging
import queue
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import grpc
import numpy as np
from google.protobuf.message import Message
from rich.progress import track

from benchmarks.results import Figure
from benchmarks.suite import Measured
from preceptor import RunSpec, SelectionClient
from preceptor.v1 import selection_pb2
from tests.reliability.served import wait_until
from tests.reliability.watched_service import CALL, Seen, WatchedService, watched_service
from tests.service import digits
from tests.service.raw import METHODS, chunk, select_open, super_batch
from tests.tcp_proxy import TcpProxy

CANCELS, SHORT_CANCELS = 10_000, 300
SILENT, SHORT_SILENT = 200, 40
SHORT_SILENCE_S = 2.0
FREED_S, SILENT_FREED_S = 0.5, 30.0

_WORKERS = 4
_PACE_S = 0.005
_SCORED_ROWS = 64
_ROWS = 20_000
"""Of a super-batch that is drawn from uniformly: more indices than gRPC takes in of a stream that nobody reads."""
_STREAMS_OF_A_RUN = 80
_WAIT_S = 30.0

Stage = Literal["before the header", "inside a body", "while it is scored", "while its answer is sent"]
Way = Literal["the call is cancelled", "its connection is reset", "its requests break off"]
Hush = Literal["vanishes", "stalls", "hangs"]

_LATEST_S: Mapping[Stage, float] = {
    "before the header": 0.01,
    "inside a body": 0.01,
    "while it is scored": 0.03,
    "while its answer is sent": 0.06,
}
"""Moments are drawn from 0 to this: before a header from the beginning of the call on, else since it was opened."""
_HUSHES: tuple[Hush, ...] = ("vanishes", "vanishes", "stalls", "stalls", "hangs")

_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", -1),
    # It takes in little before it is asked: an answer that is not read is still being sent.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1024),
]


class _Messages(NamedTuple):
    """What calls of one run send."""

    run_id: str
    messages: list[selection_pb2.SelectRequest]

    def at(self, step: int) -> list[selection_pb2.SelectRequest]:
        """The same as another step, so that no answer is one that was given before."""
        opening, *rest = self.messages
        if not rest:
            return [opening]
        header = selection_pb2.SelectRequest()
        header.CopyFrom(rest[0])
        header.super_batch.step = step
        return [opening, header, *rest[1:]]


@dataclass
class GivenUp:
    """When each call was given up, and how many of each kind there are."""

    at: dict[str, float] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Left:
    """What was left in the end of so many calls, and how long each took to be freed since it was given up."""

    tasks: int
    bytes_held: int
    metrics: int
    not_freed: int
    refused: int
    freed_s: list[float]
    unseen: int

    @property
    def p99_s(self) -> float:
        """Of the times."""
        return float(np.quantile(self.freed_s, 0.99)) if self.freed_s else 0.0


def run(short: bool, cancels: int | None = None, silence_s: float | None = None) -> Measured:
    """Runs the proof; the short form with a short `gateway.silence_s`."""
    cancels = cancels or (SHORT_CANCELS if short else CANCELS)
    silent = SHORT_SILENT if short else SILENT
    silence_s = silence_s or (SHORT_SILENCE_S if short else None)
    with _watched({}) as (service, sends):
        quiet = service.look()
        given_up = _give_up(service, sends, cancels)
        left = _left(service, sends, given_up, quiet)
        cancelled = service.look().cancelled
    with _watched({} if silence_s is None else {"silence_s": silence_s}) as (service, sends):
        quiet = service.look()
        gone = _go_silent(service, sends, silent)
        left_by_silent = _left(service, sends, gone, quiet)
    in_time = sum(took <= SILENT_FREED_S for took in left_by_silent.freed_s)
    figures = [
        Figure("calls given up", len(given_up.at), ""),
        *(
            Figure(f"given up while {doing}", len(cancelled[doing]), "", cancels / 50, "at least")
            for doing in ("it was read", "it was scored", "it was answered")
        ),
        *_leaks("given up", left),
        Figure("given up: freed after, p99", left.p99_s * 1000, "ms", FREED_S * 1000),
        Figure("given up: freed after, at the latest", max(left.freed_s) * 1000, "ms"),
        *_leaks("half-open", left_by_silent),
        Figure(f"half-open: of {silent}, freed within {SILENT_FREED_S:g} s", in_time, "", silent, "at least"),
        Figure("half-open: freed after, at the latest", max(left_by_silent.freed_s, default=0.0), "s"),
    ]
    raw = {
        "given_up": dict(given_up.kinds),
        "over_before_the_gateway_saw_them": left.unseen,
        "silent": dict(gone.kinds),
        "silence_s": silence_s,
        "freed_ms_by_percent": _percentiles(left.freed_s, 1000),
        "silent_freed_s_by_percent": _percentiles(left_by_silent.freed_s, 1),
    }
    return figures, raw


def _leaks(whose: str, left: Left) -> list[Figure]:
    return [
        Figure(f"{whose}: calls not freed", left.not_freed, "", 0),
        Figure(f"{whose}: tasks left", left.tasks, "", 0),
        Figure(f"{whose}: bytes left", left.bytes_held, "", 0),
        Figure(f"{whose}: streams, super-batches and bytes left, as metrics say", left.metrics, "", 0),
        Figure(f"{whose}: streams refused afterwards", left.refused, "", 0),
    ]


@contextmanager
def _watched(gateway: dict[str, Any]) -> Iterator[tuple[WatchedService, dict[Stage, _Messages]]]:
    with tempfile.TemporaryDirectory(prefix="preceptor-cancel-", ignore_cleanup_errors=True) as folder:
        settings = {
            "pool": "in-process",
            "gateway": {"host": "127.0.0.1", "port": 0, "max_streams_per_run": _STREAMS_OF_A_RUN, **gateway},
            "metrics": {"host": "127.0.0.1", "port": 0},
            "scorer": {"micro_batch_rows": 16},
            "weights": {"path": str(Path(folder) / "store")},
            "architectures": {"paced": "tests.service.architectures:paced"},
        }
        with watched_service(settings) as service, _quiet_log():
            with SelectionClient(service.target) as client:
                sends = {stage: _prepared(client, number, stage) for number, stage in enumerate(get_args(Stage))}
            wait_until(lambda: service.metrics.value("preceptor_select_streams") == 0, "nobody is there", _WAIT_S)
            yield service, sends


def _prepared(client: SelectionClient, number: int, stage: Stage) -> _Messages:
    is_scored = stage == "while it is scored"
    spec = RunSpec(
        f"stage-{number}",
        "paced",
        model_config={"pace_s": _PACE_S},
        score="hard_learner" if is_scored else "uniform",
        seed=number,
    )
    client.create_run(spec).push_weights(digits.gated_weights(1), step=0)
    rows = _SCORED_ROWS if is_scored else _ROWS
    batch = digits.gated_candidates(number, rows)
    header, body = super_batch(batch, step=1, sub_batch_size=1 if is_scored else rows)
    opening, data = select_open(spec.run_id), body.chunk.data
    half = [] if stage == "before the header" else [header, chunk(data[: len(data) // 2])]
    rest = [chunk(data[len(data) // 2 :], len(data) // 2)] if stage.startswith("while") else []
    return _Messages(spec.run_id, [opening, *half, *rest])


def _give_up(service: WatchedService, sends: dict[Stage, _Messages], count: int) -> GivenUp:
    given_up = GivenUp()
    numbers = iter(track(range(count), description="calls given up"))
    taking = threading.Lock()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        with TcpProxy(service.port) as proxy, _Trainer(service, proxy) as trainer:
            while True:
                with taking:
                    number = next(numbers, None)
                if number is None:
                    return
                stage: Stage = get_args(Stage)[number % len(sends)]
                way: Way = rng.choice(get_args(Way))
                name, messages = f"call-{number}", sends[stage].at(number)
                given_up.at[name] = trainer.give_up(name, messages, rng.uniform(0.0, _LATEST_S[stage]), way)
                given_up.kinds[f"{stage}, {way}"] += 1

    with ThreadPoolExecutor(_WORKERS) as workers:
        for worker in [workers.submit(work, seed) for seed in range(_WORKERS)]:
            worker.result()
    return given_up


def _go_silent(service: WatchedService, sends: dict[Stage, _Messages], count: int) -> GivenUp:
    """Opens `count` streams, each over a connection of its own, and lets them go silent together."""
    gone = GivenUp()
    kinds = itertools.cycle(itertools.product(_HUSHES, [stage for stage in sends if stage != "while it is scored"]))
    with TcpProxy(service.port) as vanishing, TcpProxy(service.port) as stalling, ExitStack() as open_calls:
        ports: dict[Hush, int] = {"vanishes": vanishing.port, "stalls": stalling.port, "hangs": service.port}
        for number, (hush, stage) in zip(range(count), kinds, strict=False):
            channel = grpc.insecure_channel(f"127.0.0.1:{ports[hush]}", options=_OPTIONS)
            open_calls.callback(channel.close)
            # A trainer that hangs between two super-batches may as well train: such have not even opened theirs.
            is_idle = stage == "before the header"
            call = _Call(channel, f"silent-{number}", [] if is_idle and hush == "hangs" else sends[stage].at(number))
            open_calls.callback(call.cancel)
            gone.at[f"silent-{number}"] = 0.0
            gone.kinds[f"{hush} {'between super-batches' if is_idle else stage}"] += 1
        wait_until(lambda: gone.at.keys() <= service.look().held.keys(), "all are open", _WAIT_S)
        gone.at = dict.fromkeys(gone.at, time.monotonic())
        vanishing.vanish()
        stalling.stall()
        deadline = time.monotonic() + 2 * SILENT_FREED_S
        for name in track(gone.at, description="silent trainers freed"):
            with suppress(TimeoutError):  # it is counted
                left_s = max(0.0, deadline - time.monotonic())
                wait_until(partial(_is_freed, service, name), f"{name} is freed", left_s)
    return gone


def _is_freed(service: WatchedService, name: str) -> bool:
    return name in service.look().freed


def _left(service: WatchedService, sends: dict[Stage, _Messages], given_up: GivenUp, quiet: Seen) -> Left:
    def is_quiet() -> bool:
        seen = service.look()
        return not (seen.held or seen.bytes_held or seen.tasks - quiet.tasks or _by_metrics(service))

    with suppress(TimeoutError):  # what is left is counted
        wait_until(is_quiet, "nothing is left", _WAIT_S)
    seen, by_metrics = service.look(), _by_metrics(service)
    return Left(
        tasks=(seen.tasks - quiet.tasks).total(),
        bytes_held=seen.bytes_held,
        metrics=by_metrics,
        not_freed=len(seen.held),
        refused=sum(_refused(service, sent) for sent in sends.values()),
        freed_s=[max(0.0, seen.freed[name] - at) for name, at in given_up.at.items() if name in seen.freed],
        unseen=len(given_up.at.keys() - seen.freed.keys() - seen.held.keys()),
    )


def _by_metrics(service: WatchedService) -> int:
    names = ("select_streams", "unanswered_super_batches", "in_flight_bytes", "micro_batches_waiting", "bodies_waiting")
    return int(sum(service.metrics.value(f"preceptor_{name}") for name in names))


def _refused(service: WatchedService, sent: _Messages) -> int:
    """Opens as many streams of a run as it may have, and returns how many were refused: none, where no slot leaked."""
    refused = 0
    with grpc.insecure_channel(service.target, options=_OPTIONS) as channel:
        calls = [_Call(channel, f"{sent.run_id}-{number}", sent.at(0)[:1]) for number in range(_STREAMS_OF_A_RUN)]
        for call in calls:
            refused += not call.is_opened()
        for call in calls:
            call.cancel()
    wait_until(lambda: service.metrics.value("preceptor_select_streams") == 0, "they are closed", _WAIT_S)
    return refused


class _BreakOffError(Exception):
    """Raised where requests are made."""


class _Call:
    """A Select stream that sends some messages, and then nothing until it is given up."""

    def __init__(self, channel: grpc.Channel, name: str, messages: Sequence[Message]) -> None:
        self._end: queue.SimpleQueue[bool] = queue.SimpleQueue()
        method = METHODS["Select"]
        open_call = channel.stream_stream(
            method.path, method.request.SerializeToString, selection_pb2.SelectResponse.FromString
        )
        self._call = open_call(self._requests(messages), metadata=((CALL, name),))

    def is_opened(self) -> bool:
        """Waits for the first answer, and says whether it came."""
        try:
            return bool(next(self._call).HasField("opened"))
        except grpc.RpcError:
            return False

    def cancel(self) -> None:
        self._call.cancel()
        self._end.put(False)

    def break_off(self) -> None:
        self._end.put(True)

    def _requests(self, messages: Sequence[Message]) -> Iterator[Message]:
        yield from messages
        if self._end.get():
            raise _BreakOffError


class _Trainer:
    """Makes one call after the other; a context manager. `proxy` is its own."""

    def __init__(self, service: WatchedService, proxy: TcpProxy) -> None:
        self._proxy = proxy
        self._direct = grpc.insecure_channel(service.target, options=_OPTIONS)
        self._pause = threading.Event()

    def __enter__(self) -> _Trainer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._direct.close()

    def give_up(self, name: str, messages: Sequence[Message], moment_s: float, way: Way) -> float:
        """Begins a call, gives it up after `moment_s`, and returns when that was."""
        if way == "its connection is reset":
            with grpc.insecure_channel(f"127.0.0.1:{self._proxy.port}", options=_OPTIONS) as channel:
                grpc.channel_ready_future(channel).result(_WAIT_S)
                call = self._begin(channel, name, messages, moment_s)
                now = time.monotonic()
                self._proxy.cut()
                call.cancel()
                return now
        call = self._begin(self._direct, name, messages, moment_s)
        now = time.monotonic()
        (call.cancel if way == "the call is cancelled" else call.break_off)()
        return now

    def _begin(self, channel: grpc.Channel, name: str, messages: Sequence[Message], moment_s: float) -> _Call:
        call = _Call(channel, name, messages)
        if len(messages) > 1:
            call.is_opened()
        self._pause.wait(moment_s)
        return call


@contextmanager
def _quiet_log() -> Iterator[None]:
    """gRPC logs each request that breaks off with its traceback."""
    log = logging.getLogger("grpc._channel")
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


def _percentiles(values: list[float], factor: float) -> dict[str, float]:
    if not values:
        return {}
    return {str(percent): float(np.percentile(values, percent)) * factor for percent in (0, 25, 50, 75, 90, 99, 100)}
