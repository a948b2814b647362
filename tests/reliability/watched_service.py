"""A service in a process of its own that tells what it holds for a call, and when the last of it was gone.

Calls name themselves in their metadata. Their tasks, found by context, and the room of their bodies are counted as
they begin and end; nothing of the service is replaced. Times are of the machine's monotonic clock, the same in every
process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from preceptor_service.app import EmbeddedService
from preceptor_service.byte_budget import ByteBudget
from preceptor_service.config import parse_config
from preceptor_service.gateway import admission
from preceptor_service.gateway.select_stream import SelectStream
from preceptor_service.gateway.selection_service import SelectionService
from preceptor_service.scoring.in_process import InProcessPool
from tests.service.conftest import Metrics

CALL = "call"
"""The metadata key by which a call names itself."""
_TIMEOUT_S = 60.0
_call: ContextVar[str | None] = ContextVar("call", default=None)


@dataclass
class Seen:
    """What a service tells of itself.

    Attributes:
        tasks: all tasks of its event loop, by what they run.
        bytes_held: of bodies, and of micro-batches at scorers.
        held: how many tasks and bodies there are of each call.
        freed: when the last of a call was gone.
        cancelled: which calls were doing what when they were given up.
    """

    tasks: Counter[str] = field(default_factory=Counter)
    bytes_held: int = 0
    held: Counter[str] = field(default_factory=Counter)
    freed: dict[str, float] = field(default_factory=dict)
    cancelled: defaultdict[str, set[str]] = field(default_factory=partial(defaultdict, set))


class WatchedService:
    """Asks the process; `target` is where trainers connect, `metrics` what it tells Prometheus."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        grpc_port, metrics_port = self._answer()
        self.port: int = grpc_port
        self.target = f"127.0.0.1:{grpc_port}"
        self.metrics = Metrics(f"http://127.0.0.1:{metrics_port}/metrics")

    def look(self) -> Seen:
        """Returns what is held now."""
        self._connection.send("look")
        seen: Seen = self._answer()
        return seen

    def _answer(self) -> Any:
        if not self._connection.poll(_TIMEOUT_S):
            raise TimeoutError(f"the service said nothing for {_TIMEOUT_S:g} s")
        return self._connection.recv()


@contextmanager
def watched_service(settings: dict[str, Any]) -> Iterator[WatchedService]:
    """Runs a service without Ray until the end of the block."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there, settings), daemon=True)
    process.start()
    try:
        yield WatchedService(here)
        here.send(None)
        process.join(_TIMEOUT_S)
    finally:
        process.kill()
        process.join()


def _serve(connection: Connection, settings: dict[str, Any]) -> None:
    watch = _Watch()
    watch.begin()
    service = EmbeddedService(parse_config(settings).with_absolute_paths())
    watch.follow(service._loop)
    connection.send((service.ports.grpc, service.ports.metrics))
    try:
        while connection.recv() is not None:
            connection.send(asyncio.run_coroutine_threadsafe(watch.look(), service._loop).result(_TIMEOUT_S))
    finally:
        service.stop()


class _Watch:
    """Lives on the event loop of the service."""

    def __init__(self) -> None:
        self._seen = Seen()
        self._budgets: list[ByteBudget] = []

    def begin(self) -> None:
        """Wraps what is followed; before the service starts."""
        select, made = SelectionService.select, ByteBudget.__init__
        watch = self

        async def named(self: SelectionService, requests: AsyncIterator[Any], context: Any) -> None:
            call = dict(context.invocation_metadata()).get(CALL)
            _call.set(call)
            watch._hold(call)
            try:
                await select(self, requests, context)
            finally:
                watch._free(call)

        def noted(self: ByteBudget, *arguments: Any, **options: Any) -> None:
            made(self, *arguments, **options)
            watch._budgets.append(self)

        class WatchedRoom(admission.Room):
            def __init__(self, bodies: ByteBudget, body_bytes: int, run_id: str) -> None:
                super().__init__(bodies, body_bytes, run_id)
                self._call = _call.get()
                watch._hold(self._call, body_bytes > 0)

            def release(self) -> None:
                watch._free(self._call, self._body_bytes > 0)
                super().release()

        SelectionService.select = named  # type: ignore[method-assign]
        ByteBudget.__init__ = noted  # type: ignore[method-assign]
        admission.Room = WatchedRoom  # type: ignore[misc]
        for owner, name, doing in (
            (SelectStream, "_next", "it was read"),
            (InProcessPool, "losses", "it was scored"),
            (SelectStream, "_send", "it was answered"),
        ):
            setattr(owner, name, self._noting(getattr(owner, name), doing))

    def follow(self, loop: asyncio.AbstractEventLoop) -> None:
        """Counts the tasks that calls make from now on."""

        def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
            task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
            call = _call.get()
            if call is not None:
                self._hold(call)
                task.add_done_callback(lambda _: self._free(call))
            return task

        loop.set_task_factory(make)

    async def look(self) -> Seen:
        seen = self._seen
        seen.tasks = Counter(
            getattr(task.get_coro(), "__qualname__", "?")
            for task in asyncio.all_tasks()
            if task is not asyncio.current_task()
        )
        seen.bytes_held = sum(budget.held_bytes for budget in self._budgets)
        return seen

    def _hold(self, call: str | None, is_held: bool = True) -> None:
        if call is not None and is_held:
            self._seen.held[call] += 1

    def _free(self, call: str | None, is_held: bool = True) -> None:
        if call is not None and is_held:
            self._seen.held[call] -= 1
            if not self._seen.held[call]:
                del self._seen.held[call]
                self._seen.freed[call] = time.monotonic()

    def _noting(self, work: Any, doing: str) -> Any:
        async def noted(*arguments: Any, **options: Any) -> Any:
            try:
                return await work(*arguments, **options)
            except BaseException:  # also what a call that is gone makes of it
                if (call := _call.get()) is not None:
                    self._seen.cancelled[doing].add(call)
                raise

        return noted
