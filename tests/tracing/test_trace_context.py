"""What a gateway makes of the trace context in a header, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from preceptor import SelectionClient
from preceptor_service.app import RunningService
from tests.service import digits
from tests.service.conftest import target_of
from tests.service.raw import RawChannel, select_open, super_batch
from tests.tracing.collector import Collector
from tests.tracing.conftest import create
from tests.tracing.trainer import train

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"


def select(target: str, run_id: str, step: int, traceparent: str | None) -> None:
    """Selects below the client library, and fails the test where that fails."""
    with RawChannel(target) as channel:
        batch = super_batch(digits.candidates(step), step=step, sub_batch_size=8, traceparent=traceparent)
        answer = channel.call("Select", select_open(run_id), *batch).answer()
    assert len(answer.selection.indices) == 8 * 8


def test_any_trainer_may_write_the_trace_context(collector: Collector, target: str, run: str) -> None:
    select(target, run, 1, SAMPLED)
    answered = collector.wait_for_answers(run, 1).one("preceptor.super_batch")
    assert (answered.trace_id, answered.parent_id) == (TRACE, SPAN)


@pytest.mark.parametrize(
    "malformed",
    [
        None,
        "",
        "00-0-0-01",
        SAMPLED.upper(),
        SAMPLED + "-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        "é" * 55,
        "0" * 100_000,
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_malformed_trace_context_is_ignored(
    collector: Collector, target: str, run: str, malformed: str | None
) -> None:
    select(target, run, 1, malformed)
    answered = collector.wait_for_answers(run, 1).one("preceptor.super_batch")
    assert answered.parent_id == ""
    assert answered.trace_id != TRACE


def test_what_the_trainer_does_not_sample_is_not_traced(collector: Collector, target: str, run: str) -> None:
    select(target, run, 1, NOT_SAMPLED)
    train(target, collector.endpoint, run, "an_epoch", OTEL_TRACES_SAMPLER="always_off")
    select(target, run, 99, None)
    assert [span.step for span in collector.wait_for_answers(run, 1).named("preceptor.super_batch")] == [99]


def test_a_service_that_does_not_trace_takes_the_trace_context_and_sends_nothing(
    collector: Collector, start: Callable[..., RunningService]
) -> None:
    target = target_of(start())
    with SelectionClient(target) as client:
        run = create(client, digits.spec("untraced"))
    train(target, collector.endpoint, run, "one_step")
    assert [span.resource["service.name"] for span in collector.spans.of_run(run)] == ["trainer"] * 2


def test_the_sampled_share_bounds_what_trainers_ask_for(
    collector: Collector, start: Callable[..., RunningService]
) -> None:
    none, all_of_them = (start(endpoint=collector.endpoint, sample_ratio=ratio) for ratio in (0.0, 1.0))
    with SelectionClient(target_of(none)) as client:
        run = create(client, digits.spec("sampled"))
    for step, traceparent in enumerate([SAMPLED, None]):
        select(target_of(none), run, step, traceparent)
    none.stop()
    select(target_of(all_of_them), run, 99, None)
    assert [span.step for span in collector.wait_for_answers(run, 1).named("preceptor.super_batch")] == [99]
