"""An OTLP collector on a real socket that keeps what it is sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.access.certificates import Pair

WAIT_S = 30.0


@dataclass(frozen=True)
class Span:
    """One span as it arrived."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    events: tuple[str, ...]
    is_error: bool
    message: str

    @property
    def run(self) -> Any:
        return self.attributes.get("preceptor.run")

    @property
    def step(self) -> Any:
        return self.attributes.get("preceptor.step")


class Spans(list[Span]):
    """Spans, and how they hang together."""

    def named(self, name: str) -> Spans:
        """Those of that name, in the order in which they began."""
        return Spans(sorted((span for span in self if span.name == name), key=lambda span: span.start_ns))

    def of_run(self, run_id: str) -> Spans:
        """Those of the traces in which some span is of that run."""
        traces = {span.trace_id for span in self if span.run == run_id}
        return Spans(span for span in self if span.trace_id in traces)

    def below(self, parent: Span) -> Spans:
        """The children of `parent`."""
        return Spans(span for span in self if (span.trace_id, span.parent_id) == (parent.trace_id, parent.span_id))

    def one(self, name: str) -> Span:
        (span,) = self.named(name)
        return span


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Listens while it is entered. While `hold` is entered, it takes spans and answers nobody."""

    def __init__(self, certificate: Pair | None = None) -> None:
        self._changed = threading.Condition()
        self._spans = Spans()
        self._is_held = False
        self.held_calls = 0
        self._server = grpc.server(ThreadPoolExecutor(8))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        if certificate is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            pairs = [(certificate.private_key, certificate.certificate)]
            port = self._server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pairs))
        self.endpoint = f"{'http' if certificate is None else 'https'}://127.0.0.1:{port}"

    def __enter__(self) -> Collector:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait(WAIT_S)

    def Export(  # noqa: N802 - as the service calls it
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        with self._changed:
            self.held_calls += self._is_held
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: not self._is_held, WAIT_S):
                raise TimeoutError("nobody let the spans go")
            for group in request.resource_spans:
                resource = _values(group.resource.attributes)
                self._spans += [_received(span, resource) for scope in group.scope_spans for span in scope.spans]
            self._changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    @contextmanager
    def hold(self) -> Iterator[None]:
        with self._changed:
            self._is_held = True
        try:
            yield
        finally:
            with self._changed:
                self._is_held = False
                self._changed.notify_all()

    @property
    def spans(self) -> Spans:
        with self._changed:
            return Spans(self._spans)

    def wait_for_answers(self, run_id: str, count: int) -> Spans:
        """Waits until the service sent the spans of so many super-batches of that run; returns all spans in its traces.

        A service sends a super-batch after what is below it, where both are in one process.
        """
        self._wait_for(
            lambda: len(self._spans.of_run(run_id).named("preceptor.super_batch")) >= count,
            f"{count} super-batches of {run_id} came",
        )
        return self.spans.of_run(run_id)

    def wait_for_lost_micro_batch(self, run_id: str) -> None:
        self._wait_for(
            lambda: any(span.is_error for span in self._spans.of_run(run_id).named("preceptor.micro_batch")),
            f"a micro-batch of {run_id} was lost",
        )

    def wait_for_held_call(self) -> None:
        self._wait_for(lambda: self.held_calls > 0, "spans were sent")

    def _wait_for(self, condition: Callable[[], bool], what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, WAIT_S):
                names = [(span.run, span.name) for span in self._spans]
                pytest.fail(f"within {WAIT_S:g} s it did not happen that {what}; there are {names}")


def _received(span: trace_pb2.Span, resource: dict[str, Any]) -> Span:
    return Span(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_values(span.attributes),
        resource=resource,
        events=tuple(event.name for event in span.events),
        is_error=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        message=span.status.message,
    )


def _values(attributes: Any) -> dict[str, Any]:
    items: list[KeyValue] = list(attributes)
    return {item.key: getattr(item.value, item.value.WhichOneof("value") or "string_value") for item in items}
