"""One span per super-batch, for a trainer's program that has set up OpenTelemetry; for any other, nothing.

Called by `client.py`. Needs no package: who has set up a tracer provider has imported OpenTelemetry's API.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from preceptor.answers import Selection
from preceptor.errors import PreceptorError

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext


def traced_select(
    offer: Callable[[str | None], Future[Selection]], run_id: str, step: int, rank: int, rows: int, sub_batch_size: int
) -> Future[Selection]:
    """Returns `offer(traceparent)`, in a span `preceptor.select` that ends with its future.

    `traceparent` is the span as W3C trace context, for the header; None where the program traces nothing.
    """
    if "opentelemetry.trace" not in sys.modules:
        return offer(None)
    from opentelemetry import trace

    span = trace.get_tracer("preceptor").start_span(
        "preceptor.select",
        kind=trace.SpanKind.CLIENT,
        attributes={
            "preceptor.run": run_id,
            "preceptor.step": step,
            "preceptor.rank": rank,
            "preceptor.row_count": rows,
            "preceptor.sub_batch_size": sub_batch_size,
        },
    )
    context = span.get_span_context()
    if not context.is_valid:  # the program has no tracer provider
        return offer(None)
    try:
        future = offer(traceparent(context))
    except BaseException as error:
        _fail(span, error)
        span.end()
        raise
    future.add_done_callback(partial(_end, span))
    return future


def traceparent(context: SpanContext) -> str:
    """Returns `context` as the W3C's `traceparent`, 55 characters."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _end(span: Span, future: Future[Selection]) -> None:
    if future.cancelled():
        span.add_event("given up")
    elif (error := future.exception()) is not None:
        _fail(span, error)
    else:
        selection = future.result()
        span.set_attribute("preceptor.is_fallback", selection.is_fallback)
        if selection.learner_version is not None:
            span.set_attribute("preceptor.learner_version", selection.learner_version)
    span.end()


def _fail(span: Span, error: BaseException) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", error.code if isinstance(error, PreceptorError) else type(error).__name__)
    span.set_status(Status(StatusCode.ERROR, str(error)))
