"""Every metric of a gateway, declared once. Served by prometheus-client from the gateway's own registry."""

from __future__ import annotations

from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from preceptor.runs import seconds
from preceptor.v1 import selection_pb2

_LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
Metric = TypeVar("Metric", Counter, Gauge)

STAGES = ("receive", "decode", "losses", "select", "total")
"""Stages of a super-batch, as in `StageTimings`."""


class GatewayMetrics:
    """The gateway's metrics; thread-safe. Label `run` has at most `limits.max_runs` values at once."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._per_run: list[Counter | Gauge] = []
        run = ("run",)
        self.super_batches = self._counter("super_batches", "Super-batches answered with a selection.", run)
        self.candidates = self._counter("candidates", "Candidates in answered super-batches.", run)
        self.selected = self._counter("selected_examples", "Examples selected.", run)
        self.fallbacks = self._counter("fallbacks", "Answers drawn uniformly by the run's policies.", run)
        self.non_finite = self._counter("non_finite_scores", "Candidates left out: score not finite.", run)
        self.rescored = self._counter("rescored_micro_batches", "Micro-batches scored again: scorer lost.", run)
        self.failures = self._counter(
            "failed_super_batches", "Super-batches answered with a failure, by status code.", ("run", "code")
        )
        self.errors = self._counter("errors", "Calls ended with an error, by status code.", ("method", "code"))
        self.stage_latency = Histogram(
            "preceptor_stage_latency_seconds",
            "Time of each stage of an answered super-batch.",
            ("stage",),
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.stage_seconds = self._counter("stage_seconds", "Time spent in each stage, summed.", ("run", "stage"))
        self.forward_seconds = self._counter("forward_seconds", "Time of forward passes on scorers, summed.", run)
        self.in_flight_bytes = self._gauge("in_flight_bytes", "Bytes of super-batches received and not answered.")
        self.streams = self._gauge("select_streams", "Open Select streams.")
        self.credit_waits = self._counter("credit_waits", "Super-batches announced beyond the stream's credit.", run)
        self.credit_wait_seconds = self._counter("credit_wait_seconds", "Time that streams waited for credit.", run)
        self.learner_version = self._gauge("learner_version", "Learner version that new answers use.", run)
        self.staleness = self._gauge("staleness_steps", "Age of the learner copy at the last answer, in steps.", run)
        self.selected_ratio = self._gauge("selected_ratio", "b / B of the last answer, from 0 to 1.", run)
        self.insecure = self._gauge(
            "insecure", "1 where others than this machine may call without saying who they are."
        )
        self.certificate_expiry = self._gauge(
            "certificate_expiry_timestamp_seconds", "When a certificate in use ends, since the epoch.", ("certificate",)
        )
        self.credential_failures = self._counter(
            "credential_reload_failures", "Changed files or keys that could not be used, by source.", ("source",)
        )
        self.pushes = self._counter("weight_pushes", "Weights committed, by role.", ("run", "role"))
        self.push_seconds = self._counter("weight_push_seconds", "Time from first byte to commit, summed.", run)

    def count_selection(
        self, run_id: str, header: selection_pb2.SuperBatchHeader, answer: selection_pb2.Selection
    ) -> None:
        """Counts one answered super-batch."""
        self.super_batches.labels(run_id).inc()
        self.candidates.labels(run_id).inc(header.row_count)
        self.selected.labels(run_id).inc(header.sub_batch_size)
        self.fallbacks.labels(run_id).inc(answer.is_fallback)
        self.non_finite.labels(run_id).inc(answer.non_finite_count)
        self.rescored.labels(run_id).inc(answer.timings.rescored_micro_batches)
        self.forward_seconds.labels(run_id).inc(seconds(answer.timings.forward))
        self.selected_ratio.labels(run_id).set(header.sub_batch_size / header.row_count)
        for stage in STAGES:
            spent = seconds(getattr(answer.timings, stage))
            self.stage_latency.labels(stage).observe(spent)
            self.stage_seconds.labels(run_id, stage).inc(spent)

    def show_learner(self, run_id: str, version: int, staleness_steps: int) -> None:
        """Shows the learner version of the last answer, or the one that was too old for it."""
        self.learner_version.labels(run_id).set(version)
        self.staleness.labels(run_id).set(staleness_steps)

    def forget_run(self, run_id: str) -> None:
        """Drops every series of a deleted run."""
        for metric in self._per_run:
            metric.remove_by_labels({"run": run_id})

    def _counter(self, name: str, meaning: str, labels: tuple[str, ...] = ()) -> Counter:
        return self._tracked(Counter(f"preceptor_{name}", meaning, labels, registry=self.registry), labels)

    def _gauge(self, name: str, meaning: str, labels: tuple[str, ...] = ()) -> Gauge:
        return self._tracked(Gauge(f"preceptor_{name}", meaning, labels, registry=self.registry), labels)

    def _tracked(self, metric: Metric, labels: tuple[str, ...]) -> Metric:
        if "run" in labels:
            self._per_run.append(metric)
        return metric
