"""One trainer's Select stream: super-batches in, answers out in the same order, credit given back.

Owns two tasks per stream, a reader and a writer, and one per super-batch under way; all end with
the stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial

import grpc

from preceptor.errors import (
    DeadlineExceededError,
    GatewayDrainingError,
    InvalidMessageError,
    InvalidSuperBatchError,
    OverloadedError,
    PreceptorError,
    RunNotFoundError,
    ScorersUnavailableError,
    UnavailableError,
)
from preceptor.v1 import selection_pb2
from preceptor_service.config import GatewayConfig
from preceptor_service.drawing import Draw
from preceptor_service.gateway import translate
from preceptor_service.gateway.admission import Admission, Room
from preceptor_service.gateway.answer_cache import AnswerCache, StepKey
from preceptor_service.gateway.body import Body, check_body_bytes, check_rows, next_message
from preceptor_service.gateway.recorder import Recorder
from preceptor_service.gateway.sending import send
from preceptor_service.gateway.status import as_preceptor_error
from preceptor_service.metrics import GatewayMetrics
from preceptor_service.pipeline import Pipeline
from preceptor_service.runs import ActiveRun, Pinned
from preceptor_service.schedule import is_held_back
from preceptor_service.selected import Arrived
from preceptor_service.tracing import Arrival, Tracing

_SLOWEST_BYTES_PER_S = 1024 * 1024
"""A body may take so long, and the run's deadline or `silence_s` on top: while it comes it takes room from others."""
_MAX_SUPER_BATCHES = 64
"""Super-batches under way on one stream; beyond it the stream is not read, so tiny ones are bounded too."""


@dataclass
class _Arriving:
    """A super-batch whose body is on its way in; `room` is None where it was refused, and what comes is dropped."""

    header: selection_pb2.SuperBatchHeader
    body: Body
    room: Room | None
    waited_s: float
    patience_s: float
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
        admission: Admission,
        answers: AnswerCache,
        config: GatewayConfig,
        metrics: GatewayMetrics,
        recorder: Recorder,
        tracing: Tracing,
    ) -> None:
        self._run = run
        self._observed_version = observed_version
        self._pipeline = pipeline
        self._admission = admission
        self._answers = answers
        self._config = config
        self._metrics = metrics
        self._recorder = recorder
        self._tracing = tracing
        self._pending: asyncio.Queue[_Pending | None] = asyncio.Queue(_MAX_SUPER_BATCHES)
        self._tasks: set[asyncio.Task[selection_pb2.SelectResponse]] = set()
        self._writing = asyncio.Lock()
        self._unanswered_bytes = 0
        self._unanswered = 0
        self._starved_since: float | None = None
        self._wanted_bytes = 0

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
            RunNotFoundError: the run was deleted.
            GatewayDrainingError: every accepted super-batch was answered, and the gateway goes away.
            UnavailableError: the client was silent inside a super-batch, or took no answer, for `silence_s`; or a body
                took too long to come.
        """
        limits = selection_pb2.SelectOpened(
            window_bytes=self._config.window_bytes,
            max_super_batch_bytes=self._config.max_super_batch_bytes,
            max_chunk_bytes=self._config.max_chunk_bytes,
        )
        await self._send(context, selection_pb2.SelectResponse(opened=limits))
        reader = asyncio.create_task(self._read(requests, context))
        writer = asyncio.create_task(self._write(context))
        drain = asyncio.create_task(draining.wait())
        deletion = asyncio.create_task(self._run.deleted.wait())
        last: asyncio.Task[None] | None = None
        self._recorder.opened(self._run)
        try:
            await asyncio.wait({reader, writer, drain, deletion}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
            last = asyncio.create_task(self._pending.put(None))
            await asyncio.wait({writer, deletion}, return_when=asyncio.FIRST_COMPLETED)
            if self._run.deleted.is_set():
                raise RunNotFoundError(_gone(self._run))
            writer.result()
            if draining.is_set():
                raise GatewayDrainingError("this gateway is going away; connect again and repeat what was not answered")
        finally:
            for task in (reader, writer, drain, deletion, last, *self._tasks):
                if task is not None:
                    task.cancel()
            self._metrics.in_flight_bytes.dec(self._unanswered_bytes)
            self._metrics.unanswered.dec(self._unanswered)
            self._recorder.closed(self._run)

    async def _read(
        self, requests: AsyncIterator[selection_pb2.SelectRequest], context: grpc.aio.ServicerContext
    ) -> None:
        arriving: _Arriving | None = None
        try:
            while (request := await self._next(requests, arriving)) is not None:
                kind = request.WhichOneof("kind")
                if kind == "super_batch" and arriving is None:
                    arriving = await self._announced(request.super_batch, context)
                elif kind == "chunk" and arriving is not None:
                    self._receive(arriving, request.chunk)
                else:
                    raise InvalidMessageError(_out_of_order(kind))
                if arriving.body.is_complete:
                    if arriving.room is not None:
                        await self._accept(arriving)
                    else:
                        await self._give_credit(context, arriving.header.body_bytes)
                    arriving = None
        finally:
            if arriving is not None and arriving.room is not None:
                arriving.room.release()

    async def _next(
        self, requests: AsyncIterator[selection_pb2.SelectRequest], arriving: _Arriving | None
    ) -> selection_pb2.SelectRequest | None:
        """Returns the next message, which inside a super-batch comes soon; None where the stream ends."""
        if arriving is None:
            return await anext(requests, None)
        left_s = arriving.started + arriving.patience_s - time.perf_counter()
        try:
            async with asyncio.timeout(left_s):
                return await next_message(requests, self._config.silence_s)
        except TimeoutError:
            raise UnavailableError(
                f"{arriving.header.body_bytes} bytes did not come within {arriving.patience_s:.1f} s; raise the run's "
                "deadline_s, or offer fewer candidates"
            ) from None

    async def _announced(self, header: selection_pb2.SuperBatchHeader, context: grpc.aio.ServicerContext) -> _Arriving:
        """Finds room for a super-batch, or refuses it at once; meanwhile nothing more of the stream is read."""
        check_body_bytes(header.body_bytes, self._config)
        if header.client_fallbacks > 0:
            self._recorder.drawn_by_client(self._run, header.client_fallbacks)
        self._watch_credit(header.body_bytes)
        patience_s = max(self._run.deadline_s, self._config.silence_s) + header.body_bytes / _SLOWEST_BYTES_PER_S
        asked = time.perf_counter()
        try:
            room = await self._admission.admit(self._run, header.body_bytes)
        except OverloadedError as error:
            self._recorder.refused(self._run)
            refusal = translate.failure(header.step, header.rank, error)
            await self._send(context, selection_pb2.SelectResponse(failure=refusal))
            return _Arriving(header, Body(header.body_bytes, is_kept=False), None, 0.0, patience_s)
        return _Arriving(header, Body(header.body_bytes), room, time.perf_counter() - asked, patience_s)

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

    def _watch_credit(self, wanted_bytes: int) -> None:
        """Notes since when there has been no credit for a super-batch of `wanted_bytes`."""
        self._wanted_bytes = wanted_bytes
        if self._starved_since is None and self._is_starved():
            self._starved_since = time.perf_counter()
            self._recorder.waits_for_credit(self._run)

    def _is_starved(self) -> bool:
        return self._unanswered_bytes + self._wanted_bytes > self._config.window_bytes

    async def _accept(self, arriving: _Arriving) -> None:
        """Starts work on a super-batch, its learner version pinned in the order of arrival.

        Raises:
            RunNotFoundError: the run was deleted.
        """
        arriving.received = time.perf_counter()
        header = arriving.header
        self._unanswered += 1
        self._metrics.unanswered.inc()
        deadline = asyncio.get_running_loop().time() + self._run.deadline_s - arriving.waited_s
        pinned: Pinned | selection_pb2.Selection | PreceptorError
        try:
            _check_header(header, self._config)
            self._recorder.arrived(self._run, header.step)
            pinned = self._answers.find(*self._step(header), self._observed_version) or await self._pipeline.pin(
                self._run, header.step, self._observed_version, deadline
            )
            self._observed_version = max(self._observed_version, _version(pinned))
        except RunNotFoundError:
            raise  # the stream ends with it
        except Exception as error:  # noqa: BLE001 - one super-batch fails, the stream lives on
            pinned = as_preceptor_error(error, "Select")
        is_repeat = isinstance(pinned, selection_pb2.Selection)
        arrival = Arrival(self._run.run_id, header, arriving.started, arriving.received, is_repeat)
        answer = asyncio.create_task(
            self._tracing.super_batch(arrival, partial(self._answer, arriving, pinned, deadline))
        )
        self._tasks.add(answer)
        answer.add_done_callback(self._tasks.discard)
        if arriving.room is not None:
            room = arriving.room
            answer.add_done_callback(lambda _: room.release())
        # The shipped client announces nothing beyond its credit, so whether another one fits is asked here.
        self._watch_credit(header.body_bytes)
        await self._pending.put(_Pending(answer, header.body_bytes))

    async def _answer(
        self, arriving: _Arriving, pinned: Pinned | selection_pb2.Selection | PreceptorError, deadline: float
    ) -> selection_pb2.SelectResponse:
        header = arriving.header
        try:
            if isinstance(pinned, PreceptorError):
                raise pinned
            if isinstance(pinned, selection_pb2.Selection):
                return selection_pb2.SelectResponse(selection=pinned)
            return selection_pb2.SelectResponse(selection=await self._select(arriving, pinned, deadline))
        except Exception as error:  # noqa: BLE001 - one super-batch fails, the stream lives on
            failed = as_preceptor_error(error, "Select")
        if self._run.spec.on_deadline == "wait" and isinstance(failed, DeadlineExceededError | ScorersUnavailableError):
            failed = UnavailableError(f"{failed}; ask again")
        self._recorder.failed(self._run, failed)
        return selection_pb2.SelectResponse(failure=translate.failure(header.step, header.rank, failed))

    async def _select(self, arriving: _Arriving, pinned: Pinned, deadline: float) -> selection_pb2.Selection:
        header = arriving.header
        key, identity = self._step(header)
        arrived = Arrived(arriving.body.read(), header.row_count, deadline, header.digest)
        draw = Draw(header.step, header.rank, header.sub_batch_size)
        with self._answers.under_way(key, identity):
            selected = await self._pipeline.select(self._run, pinned, arrived, draw)
            if self._run.deleted.is_set():
                raise RunNotFoundError(_gone(self._run))
            # Another stream of the trainer may have had its answer meanwhile; that is what it goes on from.
            if answered := self._answers.find(key, identity, _version(pinned)):
                return answered
            answer = translate.selection(
                header.step,
                header.rank,
                selected,
                receive_s=arriving.received - arriving.started,
                total_s=time.perf_counter() - arriving.started,
                is_control=is_held_back(self._run.spec, header.step),
            )
            self._answers.add(key, identity, answer)
        if not selected.is_repeat:
            self._recorder.answered(self._run, header, selected, answer)
        return answer

    def _step(self, header: selection_pb2.SuperBatchHeader) -> tuple[StepKey, bytes]:
        key = StepKey(self._run.run_id, self._run.record.create_time_s, header.step, header.rank)
        return key, b"%d/%b" % (header.sub_batch_size, header.digest)

    async def _write(self, context: grpc.aio.ServicerContext) -> None:
        while (pending := await self._pending.get()) is not None:
            await self._send(context, await pending.answer)
            self._unanswered -= 1
            self._metrics.unanswered.dec()
            await self._give_credit(context, pending.body_bytes)

    async def _give_credit(self, context: grpc.aio.ServicerContext, body_bytes: int) -> None:
        self._unanswered_bytes -= body_bytes
        self._metrics.in_flight_bytes.dec(body_bytes)
        if self._starved_since is not None and not self._is_starved():
            waited = time.perf_counter() - self._starved_since
            self._recorder.waited_for_credit(self._run, waited)
            self._starved_since = None
        if body_bytes:
            await self._send(context, selection_pb2.SelectResponse(credit=selection_pb2.Credit(bytes=body_bytes)))

    async def _send(self, context: grpc.aio.ServicerContext, response: selection_pb2.SelectResponse) -> None:
        """Writes one message; reader and writer both do, and gRPC takes one at a time."""
        async with self._writing:
            await send(context, response, self._config.silence_s)


def _check_header(header: selection_pb2.SuperBatchHeader, config: GatewayConfig) -> None:
    if header.step < 0 or header.rank < 0:
        raise InvalidSuperBatchError(f"step is {header.step} and rank is {header.rank}; both start at 0")
    if header.client_fallbacks < 0:
        raise InvalidSuperBatchError(f"client_fallbacks is {header.client_fallbacks}; it starts at 0")
    check_rows(header.row_count, header.body_bytes, config)
    if not 1 <= len(header.digest) <= 32:
        raise InvalidSuperBatchError(f"digest has {len(header.digest)} bytes; give 1 to 32")


def _version(pinned: Pinned | selection_pb2.Selection) -> int:
    if isinstance(pinned, selection_pb2.Selection):
        return pinned.learner_version
    return pinned.learner.version if pinned.learner is not None else 0


def _gone(run: ActiveRun) -> str:
    return f"run {run.run_id!r} was deleted; create it again"


def _out_of_order(kind: str | None) -> str:
    if kind == "super_batch":
        return "a super-batch was announced inside another one; send all chunks of the first"
    if kind == "chunk":
        return "a chunk came without a super-batch; announce it with a SuperBatchHeader"
    if kind == "open":
        return "the stream was opened twice; send SelectOpen once"
    return "an empty SelectRequest; send a SuperBatchHeader or a Chunk"
