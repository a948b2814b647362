"""One trainer's Select stream: super-batches in, answers out in the same order, credit given back.

Owns two tasks per stream, a reader and a writer, and one per super-batch under way; all end with
the stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc

from preceptor.errors import (
    GatewayDrainingError,
    InvalidMessageError,
    InvalidSuperBatchError,
    PreceptorError,
    RunNotFoundError,
)
from preceptor.v1 import selection_pb2
from preceptor_service.config import GatewayConfig
from preceptor_service.gateway import translate
from preceptor_service.gateway.answer_cache import AnswerCache, StepKey
from preceptor_service.gateway.body import Body, check_body_bytes, check_rows
from preceptor_service.gateway.status import as_preceptor_error
from preceptor_service.metrics import GatewayMetrics
from preceptor_service.pipeline import Ask, Pipeline
from preceptor_service.runs import ActiveRun, Pinned

_MAX_SUPER_BATCHES = 64
"""Super-batches under way on one stream; beyond it the stream is not read, so tiny ones are bounded too."""


@dataclass
class _Arriving:
    """A super-batch whose body is on its way in."""

    header: selection_pb2.SuperBatchHeader
    body: Body
    started: float = field(default_factory=time.perf_counter)
    received: float = 0.0


@dataclass(frozen=True)
class _Pending:
    """A super-batch that arrived; `answer` never raises but when cancelled."""

    answer: asyncio.Task[selection_pb2.SelectResponse]
    body_bytes: int


class SelectStream:
    """The state of one open stream."""

    def __init__(
        self,
        run: ActiveRun,
        observed_version: int,
        pipeline: Pipeline,
        answers: AnswerCache,
        config: GatewayConfig,
        metrics: GatewayMetrics,
    ) -> None:
        self._run = run
        self._observed_version = observed_version
        self._pipeline = pipeline
        self._answers = answers
        self._config = config
        self._metrics = metrics
        self._pending: asyncio.Queue[_Pending | None] = asyncio.Queue(_MAX_SUPER_BATCHES)
        self._tasks: set[asyncio.Task[selection_pb2.SelectResponse]] = set()
        self._unanswered_bytes = 0
        self._starved_since: float | None = None

    async def serve(
        self,
        requests: AsyncIterator[selection_pb2.SelectRequest],
        context: grpc.aio.ServicerContext,
        draining: asyncio.Event,
    ) -> None:
        """Serves the stream after its first message, until the client ends it or the gateway drains.

        Raises:
            InvalidMessageError: the client broke the order or its credit.
            TooLargeError: a super-batch above the limit was announced.
            GatewayDrainingError: every accepted super-batch was answered, and the gateway goes away.
        """
        limits = selection_pb2.SelectOpened(
            window_bytes=self._config.window_bytes,
            max_super_batch_bytes=self._config.max_super_batch_bytes,
            max_chunk_bytes=self._config.max_chunk_bytes,
        )
        await context.write(selection_pb2.SelectResponse(opened=limits))
        reader = asyncio.create_task(self._read(requests))
        writer = asyncio.create_task(self._write(context))
        drain = asyncio.create_task(draining.wait())
        try:
            await asyncio.wait({reader, writer, drain}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
            if not writer.done():
                await self._pending.put(None)
            await writer
            if draining.is_set():
                raise GatewayDrainingError("this gateway is going away; connect again and repeat what was not answered")
        finally:
            for task in (reader, writer, drain, *self._tasks):
                task.cancel()
            self._metrics.in_flight_bytes.dec(self._unanswered_bytes)

    async def _read(self, requests: AsyncIterator[selection_pb2.SelectRequest]) -> None:
        arriving: _Arriving | None = None
        async for request in requests:
            kind = request.WhichOneof("kind")
            if kind == "super_batch" and arriving is None:
                arriving = self._announced(request.super_batch)
            elif kind == "chunk" and arriving is not None:
                self._receive(arriving, request.chunk)
            else:
                raise InvalidMessageError(_out_of_order(kind))
            if arriving.body.is_complete:
                await self._accept(arriving)
                arriving = None
        if arriving is not None:
            raise InvalidMessageError("the stream ended inside a super-batch; send all of its chunks")

    def _announced(self, header: selection_pb2.SuperBatchHeader) -> _Arriving:
        check_body_bytes(header.body_bytes, self._config)
        if self._unanswered_bytes + header.body_bytes > self._config.window_bytes:
            self._starved_since = time.perf_counter()
            self._metrics.credit_waits.labels(self._run.run_id).inc()
        return _Arriving(header, Body(header.body_bytes))

    def _receive(self, arriving: _Arriving, chunk: selection_pb2.Chunk) -> None:
        received_bytes = arriving.body.accept(chunk)
        self._unanswered_bytes += received_bytes
        self._metrics.in_flight_bytes.inc(received_bytes)
        if received_bytes > self._config.max_chunk_bytes:
            raise InvalidMessageError(
                f"the chunk at offset {chunk.offset} has {received_bytes} bytes, the limit is "
                f"{self._config.max_chunk_bytes}; send smaller ones"
            )
        if self._unanswered_bytes > self._config.window_bytes:
            raise InvalidMessageError(
                f"{self._unanswered_bytes} bytes are unanswered, the window is {self._config.window_bytes}; "
                "wait for credit"
            )

    async def _accept(self, arriving: _Arriving) -> None:
        """Pins the learner version, in the order of arrival, and starts work on the super-batch."""
        arriving.received = time.perf_counter()
        header = arriving.header
        deadline = asyncio.get_running_loop().time() + self._run.deadline_s
        pinned: Pinned | PreceptorError
        try:
            _check_header(header, self._config)
            pinned = await self._pipeline.pin(self._run, header.step, self._observed_version, deadline)
            if pinned.learner is not None:
                self._observed_version = pinned.learner.version
        except RunNotFoundError:
            raise  # deleted: the stream ends with it
        except Exception as error:  # noqa: BLE001 - one super-batch fails, the stream lives on
            pinned = as_preceptor_error(error, "Select")
        answer = asyncio.create_task(self._answer(arriving, pinned, deadline))
        self._tasks.add(answer)
        answer.add_done_callback(self._tasks.discard)
        await self._pending.put(_Pending(answer, header.body_bytes))

    async def _answer(
        self, arriving: _Arriving, pinned: Pinned | PreceptorError, deadline: float
    ) -> selection_pb2.SelectResponse:
        header = arriving.header
        try:
            if isinstance(pinned, PreceptorError):
                raise pinned
            return selection_pb2.SelectResponse(selection=await self._select(arriving, pinned, deadline))
        except Exception as error:  # noqa: BLE001 - one super-batch fails, the stream lives on
            failed = as_preceptor_error(error, "Select")
        self._run.counters.failures += 1
        self._metrics.failures.labels(self._run.run_id, failed.code).inc()
        return selection_pb2.SelectResponse(failure=translate.failure(header.step, header.rank, failed))

    async def _select(self, arriving: _Arriving, pinned: Pinned, deadline: float) -> selection_pb2.Selection:
        header = arriving.header
        key = StepKey(self._run.run_id, self._run.record.create_time_s, header.step, header.rank)
        identity = b"%d/%b" % (header.sub_batch_size, header.digest)
        known = self._answers.find(key, identity)
        if known is not None:
            return known
        ask = Ask(header.step, header.rank, header.row_count, header.sub_batch_size, arriving.body.read(), deadline)
        selected = await self._pipeline.select(self._run, pinned, ask)
        answer = translate.selection(
            header.step,
            header.rank,
            selected,
            receive_s=arriving.received - arriving.started,
            total_s=time.perf_counter() - arriving.started,
        )
        self._answers.add(key, identity, answer)
        self._count(header, answer)
        return answer

    async def _write(self, context: grpc.aio.ServicerContext) -> None:
        while (pending := await self._pending.get()) is not None:
            await context.write(await pending.answer)
            self._unanswered_bytes -= pending.body_bytes
            self._metrics.in_flight_bytes.dec(pending.body_bytes)
            if self._starved_since is not None:
                waited = time.perf_counter() - self._starved_since
                self._metrics.credit_wait_seconds.labels(self._run.run_id).inc(waited)
                self._starved_since = None
            if pending.body_bytes:
                credit = selection_pb2.Credit(bytes=pending.body_bytes)
                await context.write(selection_pb2.SelectResponse(credit=credit))

    def _count(self, header: selection_pb2.SuperBatchHeader, answer: selection_pb2.Selection) -> None:
        self._run.counters.count(header.step, header.row_count, header.sub_batch_size, answer.is_fallback)
        self._metrics.count_selection(self._run.run_id, header, answer)


def _check_header(header: selection_pb2.SuperBatchHeader, config: GatewayConfig) -> None:
    if header.step < 0 or header.rank < 0:
        raise InvalidSuperBatchError(f"step is {header.step} and rank is {header.rank}; both start at 0")
    check_rows(header.row_count, header.body_bytes, config)
    if not 1 <= len(header.digest) <= 32:
        raise InvalidSuperBatchError(f"digest has {len(header.digest)} bytes; give 1 to 32")


def _out_of_order(kind: str | None) -> str:
    if kind == "super_batch":
        return "a super-batch was announced inside another one; send all chunks of the first"
    if kind == "chunk":
        return "a chunk came without a super-batch; announce it with a SuperBatchHeader"
    if kind == "open":
        return "the stream was opened twice; send SelectOpen once"
    return "an empty SelectRequest; send a SuperBatchHeader or a Chunk"
