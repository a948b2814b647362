"""Writes `docs/metrics.md` from the table in `preceptor_service.metrics`; `--check` compares instead.

python docs/metrics.py [--check]
"""

from __future__ import annotations

from collections.abc import Mapping

from preceptor_service.metrics import QUESTIONS, STAGES, Metric

_HEAD = """\
<!-- Written by `python -m deploy.dashboards` from services/preceptor_service/metrics.py. -->
# Metrics

Each gateway serves its metrics in Prometheus' text format on `metrics.host`:`metrics.port`, by default
`http://127.0.0.1:9464/metrics`. Scorers serve none: they tell the gateway how long they took. Ray exports its own,
`ray_…`.

A metric is here under the question that it answers, with queries to ask it. The same questions head the rows of the
[dashboards](../helm/preceptor/dashboards); what to do about a bad answer is in [alerts](alerts.md).

* **Names** are `preceptor_<noun>_<unit>`; counters end in `_total`. Time is a counter of seconds: divide two
  rates for a mean.
* **Labels** are few. `run` has at most `limits.max_runs` values, and its series end when the run is deleted; every
  other label has a fixed set of values. No label holds anything that a trainer may choose but the name of its run.
* **Several gateways**: sum counters over `instance`. Of the gauges of a run take the maximum.
"""

HOW_TO_ASK: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Is selection keeping up?": (
        "Candidates per second by run; super-batches that wait, level while all is well; the slowest hundredth of the "
        "answers.",
        (
            "sum by (run) (rate(preceptor_candidates_total[5m]))",
            "sum by (instance) (preceptor_unanswered_super_batches)",
            'histogram_quantile(0.99, sum by (le) (rate(preceptor_stage_latency_seconds_bucket{stage="total"}[5m])))',
        ),
    ),
    "What waits on what?": (
        "Mean time of a super-batch by stage; then, within `losses`, of a micro-batch: waiting at the gateway for "
        "room, or at a scorer in its queue, for weights, in the forward pass.",
        (
            "sum by (stage) (rate(preceptor_stage_seconds_total[5m])) / on () group_left () "
            "sum(rate(preceptor_super_batches_total[5m]))",
            "sum(rate(preceptor_micro_batch_wait_seconds_total[5m])) / sum(rate(preceptor_micro_batches_total[5m]))",
            "sum by (part) (rate(preceptor_scorer_seconds_total[5m])) / on () group_left () "
            "sum(rate(preceptor_micro_batches_total[5m]))",
        ),
    ),
    "How stale?": (
        "Age of each learner copy in steps, as a share of its bound, and by the clock; seconds of a scorer that a step "
        "of a co-trained online model takes.",
        (
            "max by (run) (preceptor_staleness_steps)",
            "max by (run) (preceptor_staleness_steps / preceptor_max_staleness_steps)",
            "time() - max by (run) (preceptor_last_push_timestamp_seconds)",
            "sum by (run) (rate(preceptor_co_training_seconds_total[5m])) / "
            "sum by (run) (rate(preceptor_co_trained_steps_total[5m]))",
        ),
    ),
    "Does it pay?": (
        "Compute over that of uniform training, at the savings that the run expects; how many more savings it would "
        "need; how much better than its super-batch the selected part scores.",
        (
            "max by (run) (preceptor_compute_ratio)",
            "max by (run) (preceptor_break_even_savings_ratio) - max by (run) (preceptor_expected_savings_ratio)",
            'max by (run) (preceptor_mean_score{of="selected"}) - max by (run) (preceptor_mean_score{of="candidates"})',
        ),
    ),
    "Who is throttled?": (
        "Calls that were refused at a limit, by the setting; streams without credit, in seconds per second.",
        (
            "sum by (limit) (rate(preceptor_throttled_calls_total[5m]))",
            "sum by (run) (rate(preceptor_credit_wait_seconds_total[5m]))",
        ),
    ),
    "What falls back?": (
        "Share of the answers that were drawn uniformly, by reason; micro-batches whose scorer was lost.",
        (
            "sum by (run, reason) (rate(preceptor_fallbacks_total[5m])) / ignoring (reason) group_left () "
            "sum by (run) (rate(preceptor_super_batches_total[5m]))",
            "sum by (run) (rate(preceptor_rescored_micro_batches_total[5m]))",
        ),
    ),
    "What fails?": (
        "Super-batches, pushes and calls that ended in an error, by status code.",
        (
            "sum by (run, code) (rate(preceptor_failed_super_batches_total[5m]))",
            "sum by (run, code) (increase(preceptor_failed_weight_pushes_total[1h]))",
            "sum by (method, code) (rate(preceptor_errors_total[5m]))",
        ),
    ),
    "What is kept?": (
        "Answers written to each run's ledger, and those that it lacks, by reason; how much of the room is taken.",
        (
            "sum by (run) (rate(preceptor_ledger_steps_total[5m]))",
            "sum by (run, reason) (increase(preceptor_ledger_lost_steps_total[1h]))",
            "max(preceptor_ledger_bytes) / max(preceptor_ledger_limit_bytes)",
        ),
    ),
    "Does scoring run ahead?": (
        "Examples in each memory bank; what left it unused, because scoring is too far ahead; sub-batches that were "
        "refused, because scoring is behind.",
        (
            "max by (run) (preceptor_bank_examples)",
            "sum by (run) (rate(preceptor_bank_evicted_examples_total[5m]))",
            "sum by (run) (rate(preceptor_bank_short_samples_total[5m]))",
        ),
    ),
    "What runs here?": (
        "Gateways by version and configuration; more than one line for long is an upgrade that is stuck.",
        ("count by (version, config) (preceptor_build_info)",),
    ),
}
"""How each question is put to Prometheus."""


def page() -> str:
    """Returns the page."""
    parts = [_HEAD]
    for question, metrics in QUESTIONS.items():
        words, queries = HOW_TO_ASK[question]
        parts.append(f"## {question}\n\n{words}\n\n```promql\n" + "\n".join(queries) + "\n```\n")
        parts.append(
            "| metric | type | unit | labels | meaning |\n|---|---|---|---|---|\n" + "".join(map(_line, metrics))
        )
    return "\n".join(parts)


def _line(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
    if "stage" in metric.labels:
        labels += f" ({', '.join(STAGES)})"
    unit = "–" if metric.unit == "1" else metric.unit
    return f"| `{metric.exposed_name}` | {metric.kind} | {unit} | {labels} | {metric.meaning} |\n"
