"""*Overview*: every run and every gateway of an installation, for whoever operates it."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from deploy.dashboards.frame import framed, installation, run
from deploy.dashboards.panels import FIRING, GATEWAY, JOB, RATE, RUN, Limits, Query, Row, graph, number, or_none


def overview() -> dashboard.Dashboard:
    """Returns the dashboard."""
    return framed(
        uid="preceptor-overview",
        title="Preceptor / Overview",
        description=(
            "Whether selection keeps up, how old the learner copies are, what falls back or fails, and whether it pays."
        ),
        rows=[
            _glance(),
            _keeping_up(),
            _waiting(),
            _stale(),
            _failing(),
            _paying(),
            _throttled(),
            _kept(),
            _running(),
        ],
        variables=[*installation(), run(many=True)],
    )


def _glance() -> Row:
    return Row(
        "At a glance",
        [
            number(
                "Gateways up",
                "Gateways that Prometheus scrapes with success.",
                "short",
                Query(f"count(preceptor_build_info{{{GATEWAY}}})", "gateways"),
                limits=Limits(yellow=1, red=1, low_is_bad=True),
                runbooks=["PreceptorAbsent", "PreceptorTargetDown"],
            ),
            number(
                "Scorers running",
                "Scorers that take micro-batches.",
                "short",
                Query(f'max(preceptor_scorers{{{GATEWAY}, state="running"}})', "scorers"),
                limits=Limits(yellow=1, red=1, low_is_bad=True),
                runbooks=["PreceptorNoScorers", "PreceptorReplicasUnhealthy", "PreceptorScorersUnknown"],
            ),
            number(
                "Candidates per second",
                "Candidates in answered super-batches, over all chosen runs.",
                "suffix:/s",
                Query(f"sum(rate(preceptor_candidates_total{{{RUN}}}{RATE}))", "candidates"),
            ),
            number(
                "Slowest 1 % of answers",
                "The 99th percentile of the time from a super-batch's first byte to its answer. The objective is "
                "2.5 s.",
                "s",
                Query(_quantile(0.99, 'stage="total"', "le"), "p99"),
                limits=Limits(yellow=1, red=2.5),
                runbooks=["PreceptorLatencyBudgetBurnsFast", "PreceptorLatencyBudgetBurnsSlowly"],
            ),
            number(
                "Fallbacks",
                "Share of the answers that were drawn uniformly.",
                "percentunit",
                Query(
                    f"sum(rate(preceptor_fallbacks_total{{{RUN}}}{RATE}))"
                    f" / sum(rate(preceptor_super_batches_total{{{RUN}}}{RATE}))",
                    "fallbacks",
                ),
                limits=Limits(yellow=0.001, red=0.01),
                runbooks=["PreceptorFallbackActive"],
            ),
            number(
                "Alerts firing",
                "Alerts of the chosen installations that fire now, and those that name none, as without any gateway.",
                "short",
                Query(f"count({FIRING}) or vector(0)", "alerts"),
                limits=Limits(yellow=1, red=2),
            ),
        ],
    )


def _keeping_up() -> Row:
    return Row(
        "Is selection keeping up?",
        [
            graph(
                "Throughput by run",
                "Candidates in answered super-batches per second.",
                "suffix:/s",
                Query(f"sum by (run) (rate(preceptor_candidates_total{{{RUN}}}{RATE}))", "{{run}}"),
                width=12,
                stacked=True,
                runbooks=["PreceptorSelectionStalled"],
            ),
            graph(
                "Super-batches that wait",
                "Super-batches that arrived whole and are not answered. Level and busy is healthy; rising means "
                "that scorers are too few.",
                "short",
                Query(f"sum by (instance) (preceptor_unanswered_super_batches{{{GATEWAY}}})", "{{instance}}"),
                width=6,
                runbooks=["PreceptorSelectionStalled", "PreceptorQueueSaturated"],
            ),
            graph(
                "Time since the last selection",
                "Per run. A run that ended only rises; a run that trains should stay near zero.",
                "s",
                Query(f"time() - max by (run) (preceptor_last_answer_timestamp_seconds{{{RUN}}})", "{{run}}"),
                width=6,
                runbooks=["PreceptorSelectionStalled"],
            ),
        ],
    )


def _waiting() -> Row:
    return Row(
        "What waits on what?",
        [
            graph(
                "Latency by stage (95th percentile)",
                "receive: the body arrives. decode: Arrow is checked. losses: micro-batches at scorers. select: "
                "the draw.",
                "s",
                Query(_quantile(0.95, 'stage=~".+"', "le, stage"), "{{stage}}"),
                limits=Limits(yellow=1, red=2.5),
                runbooks=["PreceptorLatencyBudgetBurnsFast"],
            ),
            graph(
                "Mean time of a super-batch, by stage",
                "The stages on top of each other: where the time of an answer goes.",
                "s",
                Query(
                    f'sum by (stage) (rate(preceptor_stage_seconds_total{{{RUN}, stage!="total"}}{RATE}))'
                    f" / on () group_left () sum(rate(preceptor_super_batches_total{{{RUN}}}{RATE}))",
                    "{{stage}}",
                ),
                stacked=True,
            ),
            graph(
                "Mean time of a micro-batch",
                "gateway: waits for a place at a scorer (gateway.in_flight_bytes). queue: on its way and in the "
                "scorer's queue. load: weights. forward: computes.",
                "s",
                Query(
                    f"sum(rate(preceptor_micro_batch_wait_seconds_total{{{RUN}}}{RATE}))"
                    f" / sum(rate(preceptor_micro_batches_total{{{RUN}}}{RATE}))",
                    "gateway",
                ),
                Query(
                    f"sum by (part) (rate(preceptor_scorer_seconds_total{{{RUN}}}{RATE}))"
                    f" / on () group_left () sum(rate(preceptor_micro_batches_total{{{RUN}}}{RATE}))",
                    "{{part}}",
                ),
                stacked=True,
                runbooks=["PreceptorQueueSaturated", "PreceptorScorersBehind"],
            ),
        ],
    )


def _stale() -> Row:
    return Row(
        "How stale?",
        [
            graph(
                "Age of the learner copies",
                "Steps between the push that was used and the step that asked, at the last answer; dashed, the "
                "run's max_staleness_steps where it has one.",
                "short",
                Query(f"max by (run) (preceptor_staleness_steps{{{RUN}}})", "{{run}}"),
                Query(f"max by (run) (preceptor_max_staleness_steps{{{RUN}}})", "{{run}}, bound", is_bound=True),
                runbooks=["PreceptorLearnerCopyStale"],
            ),
            graph(
                "Time since the last push",
                "Age of the learner copy in use, by the clock.",
                "s",
                Query(f"time() - max by (run) (preceptor_last_push_timestamp_seconds{{{RUN}}})", "{{run}}"),
                runbooks=["PreceptorPushesStopped"],
            ),
            graph(
                "Pushes per minute",
                "Weights committed, by role.",
                "suffix:/min",
                Query(
                    f"60 * sum by (run, role) (rate(preceptor_weight_pushes_total{{{RUN}}}{RATE}))", "{{run}}, {{role}}"
                ),
                runbooks=["PreceptorPushesFail"],
            ),
        ],
    )


def _failing() -> Row:
    return Row(
        "What falls back, what fails?",
        [
            graph(
                "Fallbacks by reason",
                "Share of the answers drawn uniformly: scored too late (deadline), copy too old (stale), scorers "
                "lost (scorers).",
                "percentunit",
                Query(
                    f"sum by (reason) (rate(preceptor_fallbacks_total{{{RUN}}}{RATE}))"
                    f" / on () group_left () sum(rate(preceptor_super_batches_total{{{RUN}}}{RATE}))",
                    "{{reason}}",
                ),
                limits=Limits(yellow=0.001, red=0.01),
                runbooks=["PreceptorFallbackActive"],
            ),
            graph(
                "Failed super-batches by code",
                "Super-batches answered with an error, per second. INVALID_ARGUMENT and FAILED_PRECONDITION are "
                "the trainer's.",
                "suffix:/s",
                Query(
                    or_none(f"sum by (code) (rate(preceptor_failed_super_batches_total{{{RUN}}}{RATE}))", "code"),
                    "{{code}}",
                ),
                runbooks=["PreceptorErrorBudgetBurnsFast", "PreceptorErrorBudgetBurnsSlowly"],
            ),
            graph(
                "Calls that ended in an error",
                "Per second, by method and status code.",
                "suffix:/s",
                Query(
                    or_none(f"sum by (method, code) (rate(preceptor_errors_total{{{GATEWAY}}}{RATE}))", "method"),
                    "{{method}} {{code}}",
                ),
                runbooks=["PreceptorCallersRefused"],
            ),
            graph(
                "Spent of the objectives",
                "Share of super-batches slower than 2.5 s (1 % is allowed) and failed by the service (0.1 % is "
                "allowed), over the last hour; as recorded by the rules.",
                "percentunit",
                Query(f"max(preceptor:slow_super_batches:ratio_rate1h{{{JOB}}})", "slow"),
                Query(f"max(preceptor:failed_super_batches:ratio_rate1h{{{JOB}}})", "failed"),
                width=12,
                limits=Limits(yellow=0.001, red=0.01),
                runbooks=["PreceptorLatencyBudgetBurnsSlowly", "PreceptorErrorBudgetBurnsSlowly"],
            ),
            graph(
                "Scores that are not finite, and micro-batches scored again",
                "Shares of candidates left out because of their score, and of micro-batches whose scorer was "
                "lost or too slow.",
                "percentunit",
                Query(
                    f"sum(rate(preceptor_non_finite_scores_total{{{RUN}}}{RATE}))"
                    f" / sum(rate(preceptor_candidates_total{{{RUN}}}{RATE}))",
                    "not finite",
                ),
                Query(
                    f"sum(rate(preceptor_rescored_micro_batches_total{{{RUN}}}{RATE}))"
                    f" / sum(rate(preceptor_micro_batches_total{{{RUN}}}{RATE}))",
                    "scored again",
                ),
                width=12,
                runbooks=["PreceptorNonFiniteScores", "PreceptorScorersLost"],
            ),
        ],
    )


def _paying() -> Row:
    return Row(
        "Does it pay?",
        [
            number(
                "Runs that pay",
                "Share of the runs that expect savings and are compute-positive at them.",
                "percentunit",
                Query(f"avg(max by (run) (preceptor_compute_positive{{{RUN}}}))", "runs that pay"),
                width=6,
                height=8,
                limits=Limits(yellow=1, red=0.5, low_is_bad=True),
                runbooks=["PreceptorComputeNegative"],
            ),
            graph(
                "Compute over that of uniform training",
                "At the savings that each run expects, scoring and reference charged. Below 1 selection pays.",
                "short",
                Query(f"max by (run) (preceptor_compute_ratio{{{RUN}}})", "{{run}}"),
                width=9,
                limits=Limits(yellow=1, red=1),
                runbooks=["PreceptorComputeNegative"],
            ),
            graph(
                "Share of candidates selected",
                "b / B of the last answer of each run.",
                "percentunit",
                Query(f"max by (run) (preceptor_selected_ratio{{{RUN}}})", "{{run}}"),
                width=9,
            ),
        ],
    )


def _throttled() -> Row:
    return Row(
        "Who is throttled?",
        [
            graph(
                "Calls refused at a limit",
                "Per second, by the setting that names the limit.",
                "suffix:/s",
                Query(f"sum by (limit) (rate(preceptor_throttled_calls_total{{{GATEWAY}}}{RATE}))", "{{limit}}"),
                runbooks=["PreceptorCallersThrottled"],
            ),
            graph(
                "Time that streams have no credit",
                "Seconds per second, over the streams of a run: gateway.window_bytes are unanswered, and its trainers "
                "cannot run further ahead.",
                "s",
                Query(
                    or_none(f"sum by (run) (rate(preceptor_credit_wait_seconds_total{{{RUN}}}{RATE}))", "run"),
                    "{{run}}",
                ),
            ),
            graph(
                "Super-batches refused",
                "Per second, as soon as they were announced: scorers would not come to them in time, or "
                "gateway.body_bytes are taken. Trainers send them again.",
                "suffix:/s",
                Query(f"sum by (run) (rate(preceptor_refused_super_batches_total{{{RUN}}}{RATE}))", "{{run}}"),
            ),
            graph(
                "Super-batches that wait for room",
                "For gateway.body_bytes, which the runs share; each takes at most as much as it leaves free.",
                "short",
                Query(f"sum by (instance) (preceptor_bodies_waiting{{{GATEWAY}}})", "{{instance}}"),
            ),
            graph(
                "Select streams",
                "Open streams of all gateways, and what gateway.max_streams allows.",
                "short",
                Query(f"sum by (instance) (preceptor_select_streams{{{GATEWAY}}})", "{{instance}}"),
                Query(f"max(preceptor_max_select_streams{{{GATEWAY}}})", "limit of one gateway", is_bound=True),
                runbooks=["PreceptorStreamsNearLimit"],
            ),
        ],
    )


def _kept() -> Row:
    return Row(
        "What is kept?",
        [
            graph(
                "Answers written to ledgers, and dropped",
                "Per second: what was written, and what went, oldest first, to stay within the bounds of ledgers.",
                "suffix:/s",
                Query(
                    or_none(f"sum by (run) (rate(preceptor_ledger_steps_total{{{RUN}}}{RATE}))", "run"),
                    "written, {{run}}",
                ),
                Query(
                    or_none(f"sum by (run) (rate(preceptor_ledger_expired_steps_total{{{RUN}}}{RATE}))", "run"),
                    "dropped, {{run}}",
                ),
                width=6,
            ),
            graph(
                "Answers that ledgers lack",
                "Per second: given up because the store did not take them (buffer), or because one alone is larger "
                "than a ledger may be (too_large). Selection goes on.",
                "suffix:/s",
                Query(
                    or_none(f"sum by (run, reason) (rate(preceptor_ledger_lost_steps_total{{{RUN}}}{RATE}))", "run"),
                    "{{run}} {{reason}}",
                ),
                width=6,
                runbooks=["PreceptorLedgerLosesSteps"],
            ),
            graph(
                "Ledgers in the store",
                "Of all runs, and what ledger.max_bytes allows.",
                "bytes",
                Query(f"max(preceptor_ledger_bytes{{{GATEWAY}}})", "ledgers"),
                Query(f"max(preceptor_ledger_limit_bytes{{{GATEWAY}}})", "limit", is_bound=True),
                width=6,
            ),
            graph(
                "Answers that wait to be written",
                "In the memory of each gateway, up to ledger.buffer_bytes; near zero while the store takes them.",
                "bytes",
                Query(f"sum by (instance) (preceptor_ledger_buffer_bytes{{{GATEWAY}}})", "{{instance}}"),
                width=6,
            ),
        ],
    )


def _running() -> Row:
    return Row(
        "What runs here?",
        [
            graph(
                "Gateways by version and configuration",
                "More than one line for long: an upgrade is stuck, or a gateway was left over.",
                "short",
                Query(
                    f"count by (version, config) (preceptor_build_info{{{GATEWAY}}})", "{{version}}, config {{config}}"
                ),
                runbooks=["PreceptorMixedGateways", "PreceptorUpgradeStuck"],
            ),
            graph(
                "Room in the weight store",
                "Bytes left where weights are kept; nothing for an object store.",
                "bytes",
                Query(f"min by (instance) (preceptor_store_free_bytes{{{GATEWAY}}})", "{{instance}}"),
                runbooks=["PreceptorWeightStoreFilling"],
            ),
            number(
                "Weight store",
                "Up where every gateway can write to it and read from it.",
                "short",
                Query(f"min(preceptor_store_up{{{GATEWAY}}})", "up"),
                height=8,
                limits=Limits(yellow=1, red=1, low_is_bad=True),
                runbooks=["PreceptorWeightStoreDegraded"],
                words={1: "up", 0: "down"},
            ),
            number(
                "Insecure gateways",
                "Gateways that listen beyond their machine and ask nobody who they are.",
                "short",
                Query(f"sum(preceptor_insecure{{{GATEWAY}}})", "insecure"),
                height=8,
                limits=Limits(yellow=1, red=1),
                runbooks=["PreceptorInsecure"],
            ),
            graph(
                "Time left of certificates",
                "Until the first certificate of each kind ends.",
                "s",
                Query(
                    f"min by (certificate) (preceptor_certificate_expiry_timestamp_seconds{{{GATEWAY}}}) - time()",
                    "{{certificate}}",
                ),
                width=6,
                runbooks=["PreceptorCertificateNearExpiry", "PreceptorCertificateEnds"],
            ),
            graph(
                "Credentials that could not be used",
                "Changed files or keys that were refused within 15 minutes; the previous ones stay in force.",
                "short",
                Query(
                    f"sum by (source) (increase(preceptor_credential_reload_failures_total{{{GATEWAY}}}[15m]))",
                    "{{source}}",
                ),
                width=6,
                runbooks=["PreceptorCredentialReloadFails"],
            ),
            graph(
                "Audit lines that audit.file did not take",
                "Within 15 minutes; they are in the gateway's log instead.",
                "short",
                Query(
                    f"sum by (instance) (increase(preceptor_audit_failures_total{{{GATEWAY}}}[15m]))", "{{instance}}"
                ),
                width=6,
                runbooks=["PreceptorAuditFails"],
            ),
            graph(
                "Gateways that drain",
                "1 while a gateway finishes what it accepted and takes nothing new.",
                "short",
                Query(f"max by (instance) (preceptor_draining{{{GATEWAY}}})", "{{instance}}"),
                width=6,
                maximum=1,
                runbooks=["PreceptorDrainStuck"],
            ),
        ],
    )


def _quantile(share: float, stages: str, by: str) -> str:
    return (
        f"histogram_quantile({share}, sum by ({by})"
        f" (rate(preceptor_stage_latency_seconds_bucket{{{GATEWAY}, {stages}}}{RATE})))"
    )
