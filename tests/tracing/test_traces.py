"""One trace per super-batch, from the trainer's program to the forward passes."""

from __future__ import annotations

import itertools
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from preceptor import SelectionClient
from preceptor_service.app import RunningService
from tests.service import digits
from tests.service.architectures import Gate
from tests.tcp_proxy import TcpProxy
from tests.tracing.collector import Collector, Span, Spans
from tests.tracing.conftest import create
from tests.tracing.trainer import LOADER_STEPS, RANK, STEP, train

STAGES = ("receive", "decode", "losses", "select")


def lies_within(inner: Span, outer: Span) -> bool:
    return outer.start_ns <= inner.start_ns <= inner.end_ns <= outer.end_ns


@pytest.fixture(scope="module")
def trace(collector: Collector, target: str) -> Spans:
    """The spans of one selection of 8 from 32 candidates, in micro-batches of 16."""
    with SelectionClient(target) as client:
        create(client, digits.spec("one-step"))
    train(target, collector.endpoint, "one-step", "one_step")
    return collector.wait_for_answers("one-step", 1)


def test_a_super_batch_is_one_trace_from_the_trainer_to_the_forward_passes(trace: Spans) -> None:
    (root,) = (span for span in trace if not span.parent_id)
    assert (root.name, len({span.trace_id for span in trace})) == ("train_step", 1)
    (offered,) = trace.below(root)
    (answered,) = trace.below(offered)
    assert (offered.name, answered.name) == ("preceptor.select", "preceptor.super_batch")
    parts = trace.below(answered)
    micro_batches = parts.named("preceptor.micro_batch")
    assert sorted(span.name for span in parts) == sorted([*STAGES, "preceptor.micro_batch", "preceptor.micro_batch"])
    forwards = [trace.below(micro_batch).one("preceptor.forward") for micro_batch in micro_batches]
    assert len(trace) == 3 + len(parts) + len(forwards)
    assert not any(span.is_error for span in trace)


def test_spans_say_what_was_asked_and_what_was_answered(trace: Spans) -> None:
    offered, answered = trace.one("preceptor.select"), trace.one("preceptor.super_batch")
    asked = {
        "preceptor.run": "one-step",
        "preceptor.step": STEP,
        "preceptor.rank": RANK,
        "preceptor.row_count": 32,
        "preceptor.sub_batch_size": 8,
        "preceptor.learner_version": 1,
        "preceptor.is_fallback": False,
    }
    assert offered.attributes == asked
    assert answered.attributes == {**asked, "preceptor.is_repeat": False, "preceptor.rescored_micro_batches": 0}
    assert offered.resource["service.name"] == "trainer"
    assert answered.resource["service.name"] == "selection"
    assert answered.resource["service.instance.id"].endswith(f":{os.getpid()}")
    assert [span.attributes["preceptor.row_count"] for span in trace.named("preceptor.micro_batch")] == [16, 16]
    for forward in trace.named("preceptor.forward"):
        assert forward.attributes["preceptor.replica"] == "in-process"
        assert forward.attributes["preceptor.device"] in ("cpu", "cuda")
        assert forward.attributes["preceptor.row_count"] == 16
        assert forward.attributes["preceptor.load_s"] >= 0
        assert forward.attributes["preceptor.forward_s"] == pytest.approx(
            (forward.end_ns - forward.start_ns) / 1e9, abs=1e-6
        )


def test_stages_lie_one_after_the_other_within_their_super_batch(trace: Spans) -> None:
    answered = trace.one("preceptor.super_batch")
    stages = [trace.below(answered).one(stage) for stage in STAGES]
    assert all(lies_within(stage, answered) for stage in stages)
    assert all(before.end_ns <= after.start_ns for before, after in itertools.pairwise(stages))
    assert stages[0].start_ns == answered.start_ns


def test_the_documentation_names_every_span_and_attribute(trace: Spans, repository: Path) -> None:
    rows = [line.split("|") for line in (repository / "docs" / "tracing.md").read_text().splitlines() if "|" in line]
    documented = {name for row in rows for name in re.findall("`([^`]+)`", row[1])}
    seen = {span.name for span in trace if span.name != "train_step"} | {
        name for span in trace for name in span.attributes
    }
    assert documented == seen | {"error.type"}


def test_a_loader_that_selects_ahead_makes_a_trace_per_super_batch(collector: Collector, target: str, run: str) -> None:
    train(target, collector.endpoint, run, "an_epoch")
    spans = collector.wait_for_answers(run, len(LOADER_STEPS))
    offered = spans.named("preceptor.select")
    assert [span.step for span in offered] == list(LOADER_STEPS)
    assert len({span.trace_id for span in offered}) == len(LOADER_STEPS)
    assert [spans.below(span).one("preceptor.super_batch").step for span in offered] == [span.step for span in offered]


def test_a_super_batch_that_is_refused_is_an_error_on_both_sides(collector: Collector, target: str, run: str) -> None:
    train(target, collector.endpoint, run, "too_many")
    spans = collector.wait_for_answers(run, 1)
    offered, answered = spans.one("preceptor.select"), spans.one("preceptor.super_batch")
    assert offered.is_error
    assert answered.is_error
    assert offered.attributes["error.type"] == answered.attributes["error.type"] == "INVALID_ARGUMENT"
    assert offered.message == answered.message
    assert "33" in answered.message


def test_a_super_batch_that_is_not_even_taken_is_an_error_too(collector: Collector, target: str, run: str) -> None:
    train(target, collector.endpoint, run, "after_deletion")
    (offered,) = collector.spans.of_run(run)
    assert (offered.is_error, offered.attributes["error.type"]) == (True, "CANCELLED")


def test_a_super_batch_that_is_given_up_says_so(collector: Collector, target: str, gated_run: str, gate: Gate) -> None:
    gate.close()
    train(target, collector.endpoint, gated_run, "a_change_of_mind")
    offered = collector.spans.of_run(gated_run).one("preceptor.select")
    assert offered.events == ("given up",)
    assert not offered.is_error


def test_a_micro_batch_that_is_scored_again_has_a_span_for_each_try(
    client: SelectionClient, collector: Collector, gated_run: str, gate: Gate
) -> None:
    gate.close()
    answer = client.get_run(gated_run).submit(digits.gated_candidates(1), sub_batch_size=4, step=1)
    collector.wait_for_lost_micro_batch(gated_run)
    gate.open()
    answer.result(20)
    spans = collector.wait_for_answers(gated_run, 1)
    answered = spans.one("preceptor.super_batch")
    lost, rescored = spans.below(answered).named("preceptor.micro_batch")
    assert (lost.is_error, lost.attributes["error.type"]) == (True, "CancelledError")
    assert not rescored.is_error
    assert not spans.below(rescored).one("preceptor.forward").is_error
    assert answered.attributes["preceptor.rescored_micro_batches"] == 1


def test_a_super_batch_that_is_sent_again_goes_on_with_its_trace(
    service: RunningService, collector: Collector, gated_run: str, gate: Gate
) -> None:
    gate.close()
    with TcpProxy(service.ports.grpc) as proxy, ThreadPoolExecutor(1) as thread:
        program = thread.submit(train, f"127.0.0.1:{proxy.port}", collector.endpoint, gated_run, "a_gated_step")
        gate.wait_for(arrived=1)
        proxy.cut()
        collector.wait_for_lost_micro_batch(gated_run)
        gate.open()
        program.result(60)
    spans = collector.wait_for_answers(gated_run, 2)
    offered = spans.one("preceptor.select")
    cut, answered = spans.below(offered).named("preceptor.super_batch")
    assert (cut.is_error, cut.message) == (True, "the stream ended before the answer")
    assert (offered.is_error, answered.is_error) == (False, False)


def test_a_repeated_super_batch_is_a_span_without_stages(
    client: SelectionClient, collector: Collector, run: str
) -> None:
    handle, batch = client.get_run(run), digits.candidates(1)
    for _ in range(2):
        handle.select(batch, sub_batch_size=8, step=1)
    spans = collector.wait_for_answers(run, 2)
    first, repeat = spans.named("preceptor.super_batch")
    assert (first.attributes["preceptor.is_repeat"], repeat.attributes["preceptor.is_repeat"]) == (False, True)
    assert [span.name for span in spans.below(repeat)] == ["receive"]
