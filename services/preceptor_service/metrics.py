"""Every metric of a gateway, declared once. Served by prometheus-client from the gateway's own registry.

`QUESTIONS` is the table that `docs/metrics.md`, the rules and the dashboards are generated from or checked against.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import Metric as Family

M = TypeVar("M", Counter, Gauge)

_LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

LIMITS = (
    "gateway.max_streams",
    "gateway.max_streams_per_run",
    "limits.max_runs",
    "limits.max_runs_per_identity",
    "limits.max_streams_per_identity",
)
"""Settings at which calls are refused, as in `OverloadedError.limit`."""

CREDENTIAL_SOURCES = ("access_file", "certificate", "oidc_keys")
"""Files and keys that are read again when they change."""

SERVICE_CODES = ("DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNKNOWN")
"""Codes of failures that are the service's own and spend the error budget. Any other is a trainer's mistake."""

LEDGER_LOSSES = ("buffer", "too_large")
"""Why a ledger lacks an answered super-batch."""

STAGES = ("receive", "decode", "losses", "select", "total")
"""Stages of a super-batch, as in `StageTimings`."""


@dataclass(frozen=True)
class Metric:
    """One line of the table.

    Attributes:
        name: without the prefix `preceptor_`, and without the `_total` that every counter ends in.
        kind: its Prometheus type.
        unit: of its value; `"1"` for a number, a share or a truth value.
        labels: `run` has at most `limits.max_runs` values at once; its series end with the run, and gauges with its
            last Select stream at the gateway. Every other label has a fixed set of values.
        meaning: one sentence.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: tuple[str, ...]
    meaning: str

    @property
    def exposed_name(self) -> str:
        """The name in a query; of a histogram without `_bucket`, `_sum` and `_count`."""
        return f"preceptor_{self.name}_total" if self.kind == "counter" else f"preceptor_{self.name}"


QUESTIONS: Mapping[str, tuple[Metric, ...]] = {
    "Is selection keeping up?": (
        Metric("super_batches", "counter", "1", ("run",), "Super-batches answered with a selection."),
        Metric("candidates", "counter", "1", ("run",), "Candidates in answered super-batches."),
        Metric("selected_examples", "counter", "1", ("run",), "Examples selected."),
        Metric("selected_ratio", "gauge", "1", ("run",), "b / B of the last answer, from 0 to 1."),
        Metric("last_answer_timestamp_seconds", "gauge", "seconds", ("run",), "When the last selection was answered."),
        Metric("stage_latency_seconds", "histogram", "seconds", ("stage",), "Time of each stage of an answered one."),
        Metric("select_streams", "gauge", "1", (), "Open Select streams."),
        Metric("unanswered_super_batches", "gauge", "1", (), "Super-batches received whole and not answered."),
        Metric("in_flight_bytes", "gauge", "bytes", (), "Bytes of super-batches received and not answered."),
    ),
    "What waits on what?": (
        Metric("stage_seconds", "counter", "seconds", ("run", "stage"), "Time spent in each stage, summed."),
        Metric("micro_batches", "counter", "1", ("run",), "Micro-batches scored."),
        Metric(
            "micro_batch_wait_seconds",
            "counter",
            "seconds",
            ("run",),
            "Time that micro-batches waited at the gateway for gateway.in_flight_bytes, summed.",
        ),
        Metric(
            "scorer_seconds",
            "counter",
            "seconds",
            ("run", "part"),
            "Time of micro-batches at scorers, summed: forward passes, loading weights, and queue with the way there.",
        ),
        Metric("micro_batches_waiting", "gauge", "1", (), "Micro-batches that wait at the gateway now."),
        Metric("micro_batch_bytes", "gauge", "bytes", (), "Bytes of micro-batches at scorers now."),
        Metric("micro_batch_limit_bytes", "gauge", "bytes", (), "The bound on them, gateway.in_flight_bytes."),
        Metric("scorers", "gauge", "1", ("state",), "Scorers that are wanted (target) and that are running."),
    ),
    "How stale?": (
        Metric("learner_version", "gauge", "1", ("run",), "Learner version that new answers use."),
        Metric("staleness_steps", "gauge", "1", ("run",), "Age of the learner copy at the last super-batch, in steps."),
        Metric("max_staleness_steps", "gauge", "1", ("run",), "The run's bound on that age, where it has one."),
        Metric(
            "last_push_timestamp_seconds", "gauge", "seconds", ("run",), "When the learner copy in use was committed."
        ),
        Metric("weight_pushes", "counter", "1", ("run", "role"), "Weights committed, by role."),
        Metric("weight_push_seconds", "counter", "seconds", ("run",), "Time from first byte to commit, summed."),
        Metric(
            "co_trained_steps",
            "counter",
            "1",
            ("run",),
            "Steps that the online model of a co-trained run was trained on, by what this gateway asked of scorers.",
        ),
        Metric(
            "co_training_seconds",
            "counter",
            "seconds",
            ("run",),
            "Time of scorers for that, loading and storing included.",
        ),
        Metric("co_training_loss", "gauge", "1", ("run",), "Its mean update loss over the block trained last."),
    ),
    "Does it pay?": (
        Metric(
            "mean_score",
            "gauge",
            "1",
            ("run", "of"),
            "Mean score of the last answer's candidates, or selected.",
        ),
        Metric(
            "reference_losses",
            "counter",
            "1",
            ("run", "source"),
            "Reference losses of runs that name a table of them: found in it (table), scored for lack of it (live).",
        ),
        Metric(
            "control_super_batches",
            "counter",
            "1",
            ("run",),
            "Answers of steps that were held back as the control arm, of runs with a control_fraction.",
        ),
        Metric(
            "scoring_flops",
            "counter",
            "1",
            ("run",),
            "Floating-point operations of the forward passes behind answers and memory banks, padding included.",
        ),
        Metric(
            "forward_flops",
            "gauge",
            "1",
            ("run", "model"),
            "Floating-point operations of a forward pass of one example: learner, learner copy, reference.",
        ),
        Metric(
            "break_even_savings_ratio",
            "gauge",
            "1",
            ("run",),
            "Share of learner updates that must be saved for selection to pay; 1 or above: it cannot.",
        ),
        Metric(
            "expected_savings_ratio", "gauge", "1", ("run",), "Share of learner updates that the run expects to save."
        ),
        Metric(
            "compute_ratio", "gauge", "1", ("run",), "Compute over that of uniform training, at the expected savings."
        ),
        Metric("compute_positive", "gauge", "1", ("run",), "1 where that is below 1, so that selection pays."),
    ),
    "Who is throttled?": (
        Metric(
            "credit_waits",
            "counter",
            "1",
            ("run",),
            "Times that a stream had no credit for another super-batch like its last, of gateway.window_bytes.",
        ),
        Metric("credit_wait_seconds", "counter", "seconds", ("run",), "Time that streams had none."),
        Metric(
            "refused_super_batches",
            "counter",
            "1",
            ("run",),
            "Super-batches refused as soon as they were announced, for want of time or room; trainers send them again.",
        ),
        Metric("bodies_waiting", "gauge", "1", (), "Super-batches that wait for gateway.body_bytes now."),
        Metric(
            "throttled_calls", "counter", "1", ("limit",), "Calls refused at a limit, by the setting that names it."
        ),
        Metric("max_select_streams", "gauge", "1", (), "The bound on open Select streams, gateway.max_streams."),
    ),
    "What falls back?": (
        Metric(
            "fallbacks",
            "counter",
            "1",
            ("run", "reason"),
            "Uniform draws by the run's policies: stale copy, deadline, scorers lost; or by its clients: no_gateway.",
        ),
        Metric("non_finite_scores", "counter", "1", ("run",), "Candidates left out: score not finite."),
        Metric(
            "rescored_micro_batches", "counter", "1", ("run",), "Micro-batches scored again: scorer lost or too slow."
        ),
    ),
    "What fails?": (
        Metric(
            "failed_super_batches",
            "counter",
            "1",
            ("run", "code"),
            "Super-batches answered with a failure.",
        ),
        Metric(
            "failed_weight_pushes", "counter", "1", ("run", "code"), "Pushes of weights that failed, by status code."
        ),
        Metric("errors", "counter", "1", ("method", "code"), "Calls ended with an error, by status code."),
        Metric("store_up", "gauge", "1", (), "1 where the weight store could be written to and read a moment ago."),
        Metric("store_free_bytes", "gauge", "bytes", (), "Room left in the weight store; absent for an object store."),
        Metric(
            "credential_reload_failures", "counter", "1", ("source",), "Changed files or keys that could not be used."
        ),
        Metric("audit_failures", "counter", "1", (), "Lines of the audit log that audit.file did not take."),
        Metric(
            "certificate_expiry_timestamp_seconds",
            "gauge",
            "seconds",
            ("certificate",),
            "When a certificate in use ends, since the epoch.",
        ),
        Metric("insecure", "gauge", "1", (), "1 where others than this machine may call without saying who they are."),
    ),
    "What is kept?": (
        Metric(
            "ledger_steps",
            "counter",
            "1",
            ("run",),
            "Answers and operations of the bank written to the ledger.",
        ),
        Metric(
            "ledger_lost_steps",
            "counter",
            "1",
            ("run", "reason"),
            "Those that it lacks: too large, or too many for ledger.buffer_bytes while the store did not take them.",
        ),
        Metric(
            "ledger_expired_steps", "counter", "1", ("run",), "Those that it dropped, oldest first, to stay in bounds."
        ),
        Metric("ledger_bytes", "gauge", "bytes", (), "All ledgers in the store, when this gateway wrote last."),
        Metric("ledger_limit_bytes", "gauge", "bytes", (), "The bound on them, ledger.max_bytes."),
        Metric("ledger_buffer_bytes", "gauge", "bytes", (), "What waits in memory to be written to ledgers."),
    ),
    "Does scoring run ahead?": (
        Metric("bank_examples", "gauge", "1", ("run",), "Examples in the memory bank, after what was last done here."),
        Metric("bank_remembered_examples", "counter", "1", ("run",), "Examples put into the memory bank."),
        Metric("bank_sampled_examples", "counter", "1", ("run",), "Examples sampled from the memory bank."),
        Metric(
            "bank_evicted_examples",
            "counter",
            "1",
            ("run",),
            "Examples that left a full memory bank to make room: scoring is further ahead than it has room for.",
        ),
        Metric(
            "bank_short_samples",
            "counter",
            "1",
            ("run",),
            "Sub-batches that were refused because the memory bank held too few: scoring is behind.",
        ),
    ),
    "What runs here?": (
        Metric("build_info", "gauge", "1", ("version", "config"), "1; the version, and a digest of the configuration."),
        Metric(
            "deployment_updating", "gauge", "1", ("deployment",), "1 while Serve replaces replicas of a deployment."
        ),
        Metric("draining", "gauge", "1", (), "1 once the gateway finishes what it accepted and takes nothing new."),
    ),
}
"""Every metric, under the question that it answers."""

METRICS: tuple[Metric, ...] = tuple(metric for metrics in QUESTIONS.values() for metric in metrics)

_BY_NAME = {metric.name: metric for metric in METRICS}


class _Registry(CollectorRegistry):
    """Leaves out when each series began, `_created`: nobody asks, and it doubles the series of counters.

    prometheus-client's own switch for that is one for the whole process, which may be a trainer's.
    """

    def collect(self) -> Iterable[Family]:
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class GatewayMetrics:
    """The gateway's metrics, an attribute each; thread-safe."""

    def __init__(self) -> None:
        self.registry = _Registry()
        self._per_run: list[Counter | Gauge] = []
        self.super_batches = self._counter("super_batches")
        self.candidates = self._counter("candidates")
        self.selected = self._counter("selected_examples")
        self.selected_ratio = self._gauge("selected_ratio")
        self.last_answer = self._gauge("last_answer_timestamp_seconds")
        self.stage_latency = self._histogram("stage_latency_seconds")
        self.streams = self._gauge("select_streams")
        self.unanswered = self._gauge("unanswered_super_batches")
        self.in_flight_bytes = self._gauge("in_flight_bytes")
        self.stage_seconds = self._counter("stage_seconds")
        self.micro_batches = self._counter("micro_batches")
        self.micro_batch_wait_seconds = self._counter("micro_batch_wait_seconds")
        self.scorer_seconds = self._counter("scorer_seconds")
        self.micro_batches_waiting = self._gauge("micro_batches_waiting")
        self.micro_batch_bytes = self._gauge("micro_batch_bytes")
        self.micro_batch_limit_bytes = self._gauge("micro_batch_limit_bytes")
        self.scorers = self._gauge("scorers")
        self.learner_version = self._gauge("learner_version")
        self.staleness = self._gauge("staleness_steps")
        self.max_staleness = self._gauge("max_staleness_steps")
        self.last_push = self._gauge("last_push_timestamp_seconds")
        self.pushes = self._counter("weight_pushes")
        self.push_seconds = self._counter("weight_push_seconds")
        self.co_trained_steps = self._counter("co_trained_steps")
        self.co_training_seconds = self._counter("co_training_seconds")
        self.co_training_loss = self._gauge("co_training_loss")
        self.mean_score = self._gauge("mean_score")
        self.control_super_batches = self._counter("control_super_batches")
        self.scoring_flops = self._counter("scoring_flops")
        self.reference_losses = self._counter("reference_losses")
        self.forward_flops = self._gauge("forward_flops")
        self.break_even_savings = self._gauge("break_even_savings_ratio")
        self.expected_savings = self._gauge("expected_savings_ratio")
        self.compute_ratio = self._gauge("compute_ratio")
        self.compute_positive = self._gauge("compute_positive")
        self.credit_waits = self._counter("credit_waits")
        self.credit_wait_seconds = self._counter("credit_wait_seconds")
        self.refused = self._counter("refused_super_batches")
        self.bodies_waiting = self._gauge("bodies_waiting")
        self.throttled = self._counter("throttled_calls")
        self.max_streams = self._gauge("max_select_streams")
        self.fallbacks = self._counter("fallbacks")
        self.non_finite = self._counter("non_finite_scores")
        self.rescored = self._counter("rescored_micro_batches")
        self.failures = self._counter("failed_super_batches")
        self.failed_pushes = self._counter("failed_weight_pushes")
        self.errors = self._counter("errors")
        self.store_up = self._gauge("store_up")
        self.store_free_bytes = self._gauge("store_free_bytes")
        self.credential_failures = self._counter("credential_reload_failures")
        self.audit_failures = self._counter("audit_failures")
        self.certificate_expiry = self._gauge("certificate_expiry_timestamp_seconds")
        self.insecure = self._gauge("insecure")
        self.ledger_steps = self._counter("ledger_steps")
        self.ledger_lost_steps = self._counter("ledger_lost_steps")
        self.ledger_expired_steps = self._counter("ledger_expired_steps")
        self.ledger_bytes = self._gauge("ledger_bytes")
        self.ledger_limit_bytes = self._gauge("ledger_limit_bytes")
        self.ledger_buffer_bytes = self._gauge("ledger_buffer_bytes")
        self.bank_examples = self._gauge("bank_examples")
        self.bank_remembered = self._counter("bank_remembered_examples")
        self.bank_sampled = self._counter("bank_sampled_examples")
        self.bank_evicted = self._counter("bank_evicted_examples")
        self.bank_short = self._counter("bank_short_samples")
        self.build_info = self._gauge("build_info")
        self.deployment_updating = self._gauge("deployment_updating")
        self.draining = self._gauge("draining")
        # From 0 on: of a series that begins at 1, `increase()` does not see the first event.
        for limit in LIMITS:
            self.throttled.labels(limit)
        for source in CREDENTIAL_SOURCES:
            self.credential_failures.labels(source)

    def rest_run(self, run_id: str) -> None:
        """Drops the gauges of a run that nobody selects for here any more; what was counted stays."""
        for metric in self._per_run:
            if isinstance(metric, Gauge):
                metric.remove_by_labels({"run": run_id})

    def forget_run(self, run_id: str) -> None:
        """Drops every series of a deleted run."""
        for metric in self._per_run:
            metric.remove_by_labels({"run": run_id})

    def _counter(self, name: str) -> Counter:
        metric = _BY_NAME[name]
        counter = Counter(f"preceptor_{name}", metric.meaning, metric.labels, registry=self.registry)
        return self._tracked(counter, metric)

    def _gauge(self, name: str) -> Gauge:
        metric = _BY_NAME[name]
        return self._tracked(Gauge(f"preceptor_{name}", metric.meaning, metric.labels, registry=self.registry), metric)

    def _histogram(self, name: str) -> Histogram:
        metric = _BY_NAME[name]
        return Histogram(
            f"preceptor_{name}", metric.meaning, metric.labels, buckets=_LATENCY_BUCKETS, registry=self.registry
        )

    def _tracked(self, series: M, metric: Metric) -> M:
        if "run" in metric.labels:
            self._per_run.append(series)
        return series
