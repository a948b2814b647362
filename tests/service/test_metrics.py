"""Every metric moves when it should, and what Prometheus scrapes is well formed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from preceptor import Run, SelectionClient
from preceptor.errors import (
    DeadlineExceededError,
    InvalidSuperBatchError,
    OverloadedError,
    RunNotFoundError,
    StaleWeightsError,
)
from preceptor_service.app import RunningService
from preceptor_service.config import ServiceConfig
from preceptor_service.metrics import CREDENTIAL_SOURCES, LIMITS, METRICS
from tests.service import digits
from tests.service.architectures import Gate
from tests.service.conftest import (
    MAX_CHUNK_BYTES,
    MAX_ROWS,
    MAX_STREAMS,
    MAX_SUPER_BATCH_BYTES,
    WINDOW_BYTES,
    Control,
    Metrics,
    metrics_of,
    target_of,
    wait_until,
)
from tests.service.raw import RawChannel, chunk, header, push_messages, select_open, super_batch


@pytest.fixture(autouse=True)
def alive(control: Control) -> Iterator[None]:
    yield
    control.check()


@dataclass
class Seen:
    """How much a metric of one run has moved."""

    metrics: Metrics
    run_id: str

    def __call__(self, name: str, **labels: str) -> float:
        return self.metrics.value(f"preceptor_{name}", run=self.run_id, **labels)


@pytest.fixture
def seen(metrics: Metrics, run_id: str) -> Seen:
    return Seen(metrics, run_id)


def test_selecting_counts_super_batches_candidates_and_selected_examples(run: Run, seen: Seen) -> None:
    for step in range(1, 4):
        run.select(digits.candidates(step), sub_batch_size=8, step=step)
    assert seen("super_batches_total") == 3
    assert seen("candidates_total") == 3 * 32
    assert seen("selected_examples_total") == 3 * 8
    assert seen("selected_ratio") == 0.25
    assert seen("fallbacks_total") == 0
    assert seen("micro_batches_total") == 3 * 2
    assert seen("scorer_seconds_total", part="forward") > 0
    assert seen("last_answer_timestamp_seconds") > 1.7e9


def test_the_selected_score_more_than_the_candidates_on_average(
    client: SelectionClient, run_id: str, seen: Seen
) -> None:
    run = client.create_run(digits.spec(run_id, score="hard_learner", selector="top_k"))
    run.push_weights(digits.weights(1), step=0)
    selection = run.select(digits.candidates(1), sub_batch_size=8, step=1)
    assert seen("mean_score", of="candidates") == pytest.approx(selection.scores.mean(), rel=1e-5)
    assert seen("mean_score", of="selected") == pytest.approx(selection.scores[selection.indices].mean(), rel=1e-5)
    assert seen("mean_score", of="selected") > seen("mean_score", of="candidates")


def test_stages_are_timed(run: Run, metrics: Metrics, seen: Seen) -> None:
    answered = metrics.value("preceptor_stage_latency_seconds_count", stage="total")
    run.select(digits.candidates(1), sub_batch_size=8, step=1)
    assert metrics.value("preceptor_stage_latency_seconds_count", stage="total") == answered + 1
    stages = {stage: seen("stage_seconds_total", stage=stage) for stage in ("receive", "decode", "losses", "select")}
    assert all(seconds > 0 for seconds in stages.values())
    assert sum(stages.values()) <= seen("stage_seconds_total", stage="total")


def test_versions_staleness_and_pushes_are_shown(run: Run, seen: Seen) -> None:
    run.push_weights(digits.weights(3), step=10)
    run.select(digits.candidates(1), sub_batch_size=8, step=14)
    assert seen("learner_version") == 2
    assert seen("staleness_steps") == 4
    assert seen("weight_pushes_total", role="learner") == 2
    assert seen("weight_pushes_total", role="reference") == 1
    assert seen("weight_push_seconds_total") > 0
    assert seen("last_push_timestamp_seconds") > 1.7e9
    run.push_weights(digits.weights(1), step=50)
    run.select(digits.candidates(1), sub_batch_size=8, step=15)
    assert seen("staleness_steps") == 0, "pushed ahead of the step that asks"


def test_the_bound_on_staleness_is_shown_beside_it(client: SelectionClient, run_id: str, seen: Seen) -> None:
    run = client.create_run(digits.spec(run_id, score="hard_learner", max_staleness_steps=30))
    run.push_weights(digits.weights(1), step=0)
    run.select(digits.candidates(1), sub_batch_size=4, step=3)
    assert seen("max_staleness_steps") == 30


def test_a_run_that_waits_for_a_push_shows_how_old_its_copy_is_and_that_it_waits(
    client: SelectionClient, run_id: str, metrics: Metrics, seen: Seen
) -> None:
    settings = {"max_staleness_steps": 5, "on_stale": "wait", "deadline_s": 2.0}
    run = client.create_run(digits.spec(run_id, score="hard_learner", **settings))
    run.push_weights(digits.weights(1), step=0)
    waiting = run.submit(digits.candidates(1), sub_batch_size=4, step=50)
    wait_until(lambda: seen("staleness_steps") == 50, "the age was shown")
    assert metrics.value("preceptor_unanswered_super_batches") == 1
    with pytest.raises(DeadlineExceededError):
        waiting.result()
    assert seen("failed_super_batches_total", code="DEADLINE_EXCEEDED") == 1
    assert (seen("staleness_steps"), seen("max_staleness_steps")) == (50, 5)


def test_gauges_of_a_run_end_with_its_last_stream_and_what_was_counted_stays(
    service: RunningService, run: Run, metrics: Metrics, seen: Seen
) -> None:
    first, last = SelectionClient(target_of(service)), SelectionClient(target_of(service))
    for step, trainer in enumerate((first, last)):
        trainer.get_run(run.run_id).select(digits.candidates(step), sub_batch_size=8, step=step)
    streams = metrics.value("preceptor_select_streams")
    first.close()
    wait_until(lambda: metrics.value("preceptor_select_streams") == streams - 1, "the first stream ended")
    assert seen("learner_version") == 1
    last.close()
    wait_until(lambda: seen("learner_version") == 0, "the gauges ended with the last one")
    assert seen("super_batches_total") == 2


def test_a_push_that_fails_is_counted_by_code(run: Run, seen: Seen) -> None:
    run.push_weights(digits.weights(3), step=10)
    with pytest.raises(StaleWeightsError):
        run.push_weights(digits.weights(4), step=9)
    assert seen("failed_weight_pushes_total", code="FAILED_PRECONDITION") == 1


def test_what_selection_costs_is_shown_and_adds_up(client: SelectionClient, run_id: str, seen: Seen) -> None:
    run = client.create_run(digits.spec(run_id, learner_flops=1e9, expected_savings=0.3))
    run.push_reference(digits.weights(2))
    run.push_weights(digits.weights(1), step=0)
    run.select(digits.candidates(1), sub_batch_size=8, step=1)
    cost = run.status().cost
    assert cost is not None
    share = cost.learner_copy_flops / 1e9
    per_update = 1 + share + 4 / 3 * 2 * share
    assert (cost.learner_flops, cost.ratio) == (1e9, 4)
    assert cost.learner_copy_flops == cost.reference_flops > 0
    assert cost.compute_ratio == pytest.approx(0.7 * per_update + share)
    assert cost.break_even_savings == pytest.approx(1 - (1 - share) / per_update)
    assert seen("compute_ratio") == pytest.approx(cost.compute_ratio)
    assert seen("break_even_savings_ratio") == pytest.approx(cost.break_even_savings)
    assert (seen("expected_savings_ratio"), seen("compute_positive")) == (0.3, 1)
    assert seen("scoring_flops_total") == 32 * 2 * cost.learner_copy_flops
    assert seen("forward_flops", model="learner") == 1e9
    assert seen("forward_flops", model="reference") == cost.reference_flops


def test_a_scorer_as_large_as_the_learner_does_not_pay(run: Run, seen: Seen) -> None:
    run.select(digits.candidates(1), sub_batch_size=8, step=1)
    assert seen("compute_positive") == 0
    assert seen("break_even_savings_ratio") >= 1


def test_calls_beyond_a_limit_are_counted_by_the_setting_that_names_it(
    start: Callable[..., RunningService], run_id: str
) -> None:
    service = start(limits={"max_runs": 1})
    name = "preceptor_throttled_calls_total"
    with SelectionClient(target_of(service)) as client:
        client.create_run(digits.spec(run_id))
        with pytest.raises(OverloadedError, match=r"holds 1 runs, as many as limits\.max_runs allows; delete"):
            client.create_run(digits.spec(f"{run_id}-too"))
    assert metrics_of(service).value(name, limit="limits.max_runs") == 1


def test_scorers_store_and_build_are_looked_at(metrics: Metrics) -> None:
    wait_until(lambda: metrics.value("preceptor_scorers", state="running") == 1, "the scorer was seen")
    wait_until(lambda: metrics.value("preceptor_store_up") == 1, "the store was seen")
    assert metrics.value("preceptor_scorers", state="target") == 1
    assert metrics.value("preceptor_store_free_bytes") > 0
    assert metrics.value("preceptor_build_info") == 1
    assert metrics.value("preceptor_max_select_streams") == MAX_STREAMS
    assert metrics.value("preceptor_micro_batch_limit_bytes") > 0
    assert metrics.value("preceptor_draining") == 0


def test_failures_are_counted_by_code(run: Run, seen: Seen) -> None:
    with pytest.raises(InvalidSuperBatchError):
        run.select(digits.candidates(1), sub_batch_size=99, step=1)
    assert seen("failed_super_batches_total", code="INVALID_ARGUMENT") == 1
    assert seen("super_batches_total") == 0


def test_calls_that_end_in_an_error_are_counted_by_method_and_code(
    client: SelectionClient, raw: RawChannel, metrics: Metrics
) -> None:
    name = "preceptor_errors_total"
    unknown = metrics.value(name, method="GetRun", code="NOT_FOUND")
    broken = metrics.value(name, method="Select", code="INVALID_ARGUMENT")
    with pytest.raises(RunNotFoundError):
        client.get_run("nobody")
    raw.call("Select", b"\xff").status()
    assert metrics.value(name, method="GetRun", code="NOT_FOUND") == unknown + 1
    assert metrics.value(name, method="Select", code="INVALID_ARGUMENT") == broken + 1


def test_what_does_not_exist_makes_no_series(client: SelectionClient, raw: RawChannel, metrics: Metrics) -> None:
    known = metrics.series()
    for number in range(20):
        stranger = f"stranger-{number}"
        for call in (client.get_run, client.delete_run):
            with suppress(RunNotFoundError):
                call(stranger)
        raw.call("Select", select_open(stranger), *super_batch(digits.candidates(number))).status()
        raw.call("PushWeights", *push_messages(b"weights", run_id=stranger)).status()
    new = metrics.series() - known
    assert {name for name, _ in new} <= {"preceptor_errors_total"}
    assert {dict(labels)["method"] for _, labels in new} <= {"GetRun", "DeleteRun", "Select", "PushWeights"}
    assert len(new) <= 4


def test_scores_that_are_not_finite_are_counted(client: SelectionClient, run_id: str, seen: Seen) -> None:
    run = client.create_run(digits.spec(run_id, model_config=digits.FLOAT_MODEL, score="hard_learner"))
    state = {name: tensor.abs() * 1e30 for name, tensor in digits.weights(1, digits.FLOAT_MODEL).items()}
    run.push_weights({name: tensor * ("bias" not in name) for name, tensor in state.items()}, step=0)
    batch = digits.float_candidates(0, rows=10)
    batch["image"][:4] = 0
    run.select(batch, sub_batch_size=2, step=1)
    assert seen("non_finite_scores_total") == 6


def test_fallbacks_are_counted_and_show_how_old_the_copy_was(client: SelectionClient, run_id: str, seen: Seen) -> None:
    run = client.create_run(digits.spec(run_id, score="hard_learner", max_staleness_steps=3, on_stale="uniform"))
    run.push_weights(digits.weights(1), step=0)
    run.select(digits.candidates(1), sub_batch_size=4, step=3)
    run.select(digits.candidates(2), sub_batch_size=4, step=9)
    assert seen("fallbacks_total") == seen("fallbacks_total", reason="stale") == 1
    assert seen("staleness_steps") == 9


def test_what_a_client_drew_while_no_gateway_answered_is_counted(raw: RawChannel, run: Run, seen: Seen) -> None:
    call = raw.call("Select", select_open(run.run_id), *super_batch(digits.candidates(1), client_fallbacks=3))
    call.answer()
    assert seen("fallbacks_total") == seen("fallbacks_total", reason="no_gateway") == 3


def test_bytes_in_flight_and_streams_rise_and_fall(
    raw: RawChannel, metrics: Metrics, gated_run: Run, gate: Gate
) -> None:
    streams = metrics.value("preceptor_select_streams")
    messages = super_batch(digits.gated_candidates(1))
    gate.close()
    call = raw.call("Select", select_open(gated_run.run_id), *messages)
    gate.wait_for(arrived=1)
    assert metrics.value("preceptor_select_streams") == streams + 1
    assert metrics.value("preceptor_in_flight_bytes") == len(messages[1].chunk.data)
    assert metrics.value("preceptor_unanswered_super_batches") == 1
    assert metrics.value("preceptor_micro_batch_bytes") > 0
    gate.open()
    call.answer()
    call.half_close()
    assert call.status().code == "OK"
    wait_until(lambda: metrics.value("preceptor_select_streams") == streams, "the stream was counted out")
    assert metrics.value("preceptor_in_flight_bytes") == 0
    assert metrics.value("preceptor_unanswered_super_batches") == 0
    assert metrics.value("preceptor_micro_batch_bytes") == 0


def test_waiting_for_credit_is_counted_and_timed(raw: RawChannel, gated_run: Run, gate: Gate, seen: Seen) -> None:
    call = raw.call("Select", select_open(gated_run.run_id))
    body = bytes(MAX_SUPER_BATCH_BYTES)
    gate.close()
    call.send(*super_batch(digits.gated_candidates(1), step=1))
    for step in range(2, 1 + WINDOW_BYTES // len(body)):
        call.send(header(body, step=step, row_count=1))
        call.send(*[chunk(body[at : at + MAX_CHUNK_BYTES], at) for at in range(0, len(body), MAX_CHUNK_BYTES)])
    call.send(header(body, step=99, row_count=1))  # its chunks have to wait
    wait_until(lambda: seen("credit_waits_total") == 1, "the wait was noticed")
    gate.open()
    assert call.answer().WhichOneof("kind") == "selection"
    wait_until(lambda: seen("credit_wait_seconds_total") > 0, "the wait was timed")
    call.cancel()


def test_a_client_that_runs_as_far_ahead_as_it_may_is_seen_to_wait(gated_run: Run, gate: Gate, seen: Seen) -> None:
    body_bytes = MAX_ROWS * 16
    gate.close()
    futures = [
        gated_run.submit(digits.gated_candidates(step, MAX_ROWS), sub_batch_size=4, step=step)
        for step in range(1 + WINDOW_BYTES // body_bytes)
    ]
    wait_until(lambda: seen("credit_waits_total") == 1, "the full window was noticed")
    gate.open()
    for future in futures:
        future.result()
    assert seen("credit_wait_seconds_total") > 0


def test_what_has_not_happened_yet_is_0_and_not_absent(run: Run, metrics: Metrics) -> None:
    run.select(digits.candidates(1), sub_batch_size=8, step=1)
    text = metrics.text()
    for reason in ("stale", "deadline", "scorers", "no_gateway"):
        assert f'preceptor_fallbacks_total{{reason="{reason}",run="{run.run_id}"}} 0.0' in text
    assert f'preceptor_rescored_micro_batches_total{{run="{run.run_id}"}} 0.0' in text
    for limit in LIMITS:
        assert f'preceptor_throttled_calls_total{{limit="{limit}"}}' in text
    for source in CREDENTIAL_SOURCES:
        assert f'preceptor_credential_reload_failures_total{{source="{source}"}} 0.0' in text


def test_every_limit_is_a_setting() -> None:
    plain = ServiceConfig().model_dump()
    assert [limit for limit in LIMITS if limit.split(".")[1] not in plain[limit.split(".")[0]]] == []


def test_repeated_answers_are_not_counted_twice(run: Run, seen: Seen) -> None:
    for _ in range(3):
        run.select(digits.candidates(1), sub_batch_size=8, step=1)
    assert seen("super_batches_total") == 1


def test_a_deleted_run_has_no_series(client: SelectionClient, run: Run, metrics: Metrics) -> None:
    run.select(digits.candidates(1), sub_batch_size=8, step=1)
    with pytest.raises(InvalidSuperBatchError):
        run.select(digits.candidates(1), sub_batch_size=0, step=2)
    assert run.run_id in metrics.runs()
    client.delete_run(run.run_id)
    assert run.run_id not in metrics.runs()


def test_what_is_served_is_what_the_table_says(run: Run, metrics: Metrics) -> None:
    run.select(digits.candidates(1), sub_batch_size=8, step=1)
    table = {f"preceptor_{metric.name}": metric for metric in METRICS}
    served = {family.name: family for family in text_string_to_metric_families(metrics.text())}
    assert served.keys() == table.keys()
    for name, family in served.items():
        metric = table[name]
        assert (family.type, family.documentation) == (metric.kind, metric.meaning)
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == set(metric.labels), name


def test_every_metric_is_explained_and_named_by_noun_and_unit() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.meaning.endswith(".")
        assert not set(metric.labels) & {"job", "instance"}  # Prometheus' own
        if metric.unit != "1":
            assert metric.name.endswith(f"_{metric.unit}"), metric.name


def test_prometheus_finds_no_fault_with_a_scrape(run: Run, metrics: Metrics, promtool: Path) -> None:
    run.select(digits.candidates(1), sub_batch_size=8, step=1)
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=metrics.text(), capture_output=True, text=True, timeout=30, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_metrics_can_be_switched_off(start: Callable[..., RunningService]) -> None:
    service = start(metrics={"enabled": False})
    assert service.ports.metrics is None
