"""The spans of a super-batch, sent to an OTLP collector: the only place that knows OpenTelemetry.

Called by way of `tracing.py`, where tracing is on. Owns one thread, which sends. Memory held: the last `_QUEUED_SPANS`
spans that were not sent yet; a collector that is slow or gone costs spans, never a super-batch.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from importlib import metadata
from typing import TypeAlias

import grpc
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from preceptor.tracing import traceparent
from preceptor.v1 import selection_pb2
from preceptor_service.config import ConfigError, TracingConfig
from preceptor_service.scoring.pool import (
    Deployed,
    LoadReport,
    Losses,
    MicroBatch,
    ScorerPool,
    ScoringModels,
    Trained,
    Training,
)
from preceptor_service.tracing import Answer, Arrival

Attributes: TypeAlias = dict[str, str | bool | int | float]

_QUEUED_SPANS = 2048
_SENT_AT_ONCE = 512
_SEND_EVERY_MS = 1000
_SEND_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 3.0
_TRACEPARENT_LENGTH = 55

_super_batch: ContextVar[Context | None] = ContextVar("preceptor_super_batch", default=None)
"""The trace of the super-batch that this task answers; None where it is not traced."""


class Spans:
    """Implements `Tracing`. Leaves OpenTelemetry's globals to the program around it.

    Raises:
        ConfigError: as `credentials`.
    """

    def __init__(self, config: TracingConfig) -> None:
        self._exporter = OTLPSpanExporter(
            endpoint=config.endpoint,
            insecure=not _is_tls(config),
            credentials=credentials(config),
            timeout=_SEND_TIMEOUT_S,
        )
        share = TraceIdRatioBased(config.sample_ratio)
        resource = {
            "service.name": config.service_name,
            "service.version": metadata.version("preceptor"),
            "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        }
        self._provider = TracerProvider(
            # By trace id, so that every gateway and scorer keeps the same traces.
            sampler=ParentBased(root=share, remote_parent_sampled=share),
            resource=Resource.create(resource),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=_QUEUED_SPANS,
                schedule_delay_millis=_SEND_EVERY_MS,
                max_export_batch_size=_SENT_AT_ONCE,
            )
        )
        self._tracer = self._provider.get_tracer("preceptor")
        self._stopping: threading.Thread | None = None

    async def super_batch(self, arrival: Arrival, answer: Answer) -> selection_pb2.SelectResponse:
        """Records `preceptor.super_batch`, and its stages from the timings in the answer."""
        now, clock = time.perf_counter(), _Clock()
        header = arrival.header
        span = self._tracer.start_span(
            "preceptor.super_batch",
            _context(header.traceparent),
            SpanKind.SERVER,
            {
                "preceptor.run": arrival.run_id,
                "preceptor.step": header.step,
                "preceptor.rank": header.rank,
                "preceptor.row_count": header.row_count,
                "preceptor.sub_batch_size": header.sub_batch_size,
                "preceptor.is_repeat": arrival.is_repeat,
            },
            start_time=clock.ns(arrival.started),
        )
        if not span.is_recording():
            return await answer()
        context = trace.set_span_in_context(span, Context())
        self._stage("receive", context, clock.ns(arrival.started), clock.ns(arrival.received))
        _super_batch.set(context)
        try:
            response = await answer()
            if response.WhichOneof("kind") == "failure":
                _set_failure(span, response.failure)
            else:
                _set_selection(span, response.selection)
                if not arrival.is_repeat:
                    self._stages(response.selection.timings, context, clock.ns(arrival.started), clock.ns(now))
        except asyncio.CancelledError:
            span.set_status(Status(StatusCode.ERROR, "the stream ended before the answer"))
            raise
        finally:
            span.end(clock.ns(time.perf_counter()))
        return response

    def gateway_pool(self, pool: ScorerPool) -> ScorerPool:
        """Records `preceptor.micro_batch`."""
        return _GatewayPool(pool, self._tracer)

    def scorer_pool(self, pool: ScorerPool, device: str, replica: Callable[[], str]) -> ScorerPool:
        """Records `preceptor.forward`."""
        return _ScorerPool(pool, self._tracer, {"preceptor.device": device, "preceptor.replica": replica()})

    def stop(self) -> None:
        """Sends what is queued, for at most `_STOP_TIMEOUT_S` seconds, and drops the rest."""
        if self._stopping is not None:
            return
        self._stopping = threading.Thread(target=self._provider.shutdown, name="preceptor-last-spans", daemon=True)
        self._stopping.start()
        self._stopping.join(_STOP_TIMEOUT_S)
        if self._stopping.is_alive():
            self._exporter.shutdown()  # breaks off what is being sent; the thread ends by itself

    def _stages(
        self, timings: selection_pb2.StageTimings, context: Context, started_ns: int, computing_ns: int
    ) -> None:
        """Records what the pipeline measured: decode and losses follow each other, select comes last."""
        losses_ns = computing_ns + timings.decode.ToNanoseconds()
        self._stage("decode", context, computing_ns, losses_ns)
        if losses := timings.losses.ToNanoseconds():
            self._stage("losses", context, losses_ns, losses_ns + losses)
        if select := timings.select.ToNanoseconds():
            end_ns = started_ns + timings.total.ToNanoseconds()
            self._stage("select", context, end_ns - select, end_ns)

    def _stage(self, name: str, context: Context, start_ns: int, end_ns: int) -> None:
        self._tracer.start_span(name, context, start_time=start_ns).end(end_ns)


class _TracedPool:
    """A `ScorerPool` around another one, but for `losses`."""

    def __init__(self, pool: ScorerPool, tracer: trace.Tracer) -> None:
        self._pool = pool
        self._tracer = tracer

    async def train(self, training: Training) -> Trained:
        return await self._pool.train(training)

    async def load(self, models: ScoringModels) -> LoadReport:
        return await self._pool.load(models)

    def deployed(self) -> Deployed | None:
        return self._pool.deployed()

    async def close(self) -> None:
        await self._pool.close()


class _GatewayPool(_TracedPool):
    """Lets micro-batches carry their trace along."""

    async def losses(self, models: ScoringModels, batch: MicroBatch) -> Losses:
        context = _super_batch.get()
        if context is None:
            return await self._pool.losses(models, batch)
        attributes = _attributes(models, batch)
        span = self._tracer.start_span("preceptor.micro_batch", context, SpanKind.CLIENT, attributes)
        with _ending(span):
            return await self._pool.losses(models, replace(batch, traceparent=traceparent(span.get_span_context())))


class _ScorerPool(_TracedPool):
    """Goes on with the traces that come with micro-batches."""

    def __init__(self, pool: ScorerPool, tracer: trace.Tracer, attributes: Attributes) -> None:
        super().__init__(pool, tracer)
        self._attributes = attributes

    async def losses(self, models: ScoringModels, batch: MicroBatch) -> Losses:
        if batch.traceparent is None:
            return await self._pool.losses(models, batch)
        arrived_ns = time.time_ns()
        try:
            losses = await self._pool.losses(models, batch)
        except BaseException:
            with _ending(self._span(models, batch, arrived_ns)):
                raise
        end_ns = time.time_ns()
        span = self._span(models, batch, end_ns - round(losses.forward_s * 1e9))
        span.set_attributes({"preceptor.forward_s": losses.forward_s, "preceptor.load_s": losses.load_s})
        span.end(end_ns)
        return losses

    def _span(self, models: ScoringModels, batch: MicroBatch, start_ns: int) -> trace.Span:
        attributes = {**_attributes(models, batch), **self._attributes}
        context = _context(batch.traceparent or "")
        return self._tracer.start_span("preceptor.forward", context, SpanKind.SERVER, attributes, start_time=start_ns)


class _Clock:
    """`time.perf_counter` as nanoseconds since the epoch, the same way for all spans of a super-batch."""

    def __init__(self) -> None:
        self._epoch_ns = time.time_ns() - time.perf_counter_ns()

    def ns(self, counter: float) -> int:
        return self._epoch_ns + round(counter * 1e9)


def credentials(config: TracingConfig) -> grpc.ChannelCredentials | None:
    """Returns what the connection to the collector trusts; None for plaintext.

    Raises:
        ConfigError: `ca` cannot be read.
    """
    if not _is_tls(config):
        return None
    try:
        return grpc.ssl_channel_credentials(None if config.ca is None else config.ca.read_bytes())
    except OSError as error:
        raise ConfigError(f"tracing.ca is {config.ca}, which cannot be read: {error.strerror}") from error


def _is_tls(config: TracingConfig) -> bool:
    return (config.endpoint or "").startswith("https:")


def _context(header: str) -> Context:
    """Returns the trace that a `traceparent` names, or an empty context where it is malformed."""
    if len(header) != _TRACEPARENT_LENGTH:
        return Context()
    return TraceContextTextMapPropagator().extract({"traceparent": header}, Context())


def _attributes(models: ScoringModels, batch: MicroBatch) -> Attributes:
    return {"preceptor.run": models.run_id, "preceptor.row_count": batch.row_count}


def _set_selection(span: trace.Span, selection: selection_pb2.Selection) -> None:
    attributes: Attributes = {
        "preceptor.is_fallback": selection.is_fallback,
        "preceptor.rescored_micro_batches": selection.timings.rescored_micro_batches,
    }
    if selection.HasField("learner_version"):
        attributes["preceptor.learner_version"] = selection.learner_version
    span.set_attributes(attributes)


def _set_failure(span: trace.Span, failure: selection_pb2.Failure) -> None:
    span.set_attribute("error.type", failure.code)
    span.set_status(Status(StatusCode.ERROR, failure.message))


@contextmanager
def _ending(span: trace.Span) -> Iterator[None]:
    """Ends `span`, and marks it with the error that passes through."""
    try:
        yield
    except BaseException as error:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(Status(StatusCode.ERROR, str(error) or "given up before its end"))
        raise
    finally:
        span.end()
