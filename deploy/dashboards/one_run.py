"""*One run*: what a trainer's run gets, how fresh it is and whether it pays, for whoever trains."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from deploy.dashboards.frame import framed, installation, marks, run
from deploy.dashboards.panels import RATE, RUN, Limits, Query, Row, graph, number, or_none

_ANSWERS = f"sum(rate(preceptor_super_batches_total{{{RUN}}}{RATE}))"
_MICRO_BATCHES = f"sum(rate(preceptor_micro_batches_total{{{RUN}}}{RATE}))"


def one_run() -> dashboard.Dashboard:
    """Returns the dashboard."""
    return framed(
        uid="preceptor-run",
        title="Preceptor / One run",
        description=(
            "One run: its throughput, where its time goes, its learner copy, its scores, its compute and its failures."
        ),
        rows=[_glance(), _keeping_up(), _choosing(), _running_ahead(), _stale(), _paying(), _failing()],
        variables=[*installation(), run(many=False)],
        annotations=[
            marks(
                "New learner version",
                Query(f"max by (run) (changes(preceptor_learner_version{{{RUN}}}[1m])) > 0", "new learner version"),
                "blue",
            )
        ],
    )


def _glance() -> Row:
    return Row(
        "At a glance",
        [
            number(
                "Candidates per second",
                "Candidates in answered super-batches.",
                "suffix:/s",
                Query(f"sum(rate(preceptor_candidates_total{{{RUN}}}{RATE}))", "candidates"),
            ),
            number(
                "Mean time of an answer",
                "From a super-batch's first byte to its answer.",
                "s",
                Query(f'sum(rate(preceptor_stage_seconds_total{{{RUN}, stage="total"}}{RATE})) / {_ANSWERS}', "answer"),
                limits=Limits(yellow=1, red=2.5),
                runbooks=["PreceptorLatencyBudgetBurnsFast"],
            ),
            number(
                "Learner version",
                "The pushed version that answers use.",
                "short",
                Query(f"max(preceptor_learner_version{{{RUN}}})", "version"),
            ),
            number(
                "Share of its bound on staleness",
                "Age of the learner copy over the run's max_staleness_steps; nothing for a run without one.",
                "percentunit",
                Query(
                    f"max(preceptor_staleness_steps{{{RUN}}} / preceptor_max_staleness_steps{{{RUN}}})", "of the bound"
                ),
                limits=Limits(yellow=0.8, red=1),
                runbooks=["PreceptorLearnerCopyStale"],
            ),
            number(
                "Fallbacks",
                "Share of the answers that were drawn uniformly.",
                "percentunit",
                Query(f"sum(rate(preceptor_fallbacks_total{{{RUN}}}{RATE})) / {_ANSWERS}", "fallbacks"),
                limits=Limits(yellow=0.001, red=0.01),
                runbooks=["PreceptorFallbackActive"],
            ),
            number(
                "Compute over uniform",
                "Compute of this run over that of uniform training, at the savings it expects. Below 1 selection pays.",
                "short",
                Query(f"max(preceptor_compute_ratio{{{RUN}}})", "ratio"),
                limits=Limits(yellow=1, red=1),
                runbooks=["PreceptorComputeNegative"],
            ),
        ],
    )


def _keeping_up() -> Row:
    return Row(
        "Is selection keeping up, and what waits on what?",
        [
            graph(
                "Super-batches answered",
                "Per second.",
                "suffix:/s",
                Query(f"sum(rate(preceptor_super_batches_total{{{RUN}}}{RATE}))", "super-batches"),
                runbooks=["PreceptorSelectionStalled"],
            ),
            graph(
                "Mean time of a super-batch, by stage",
                "receive: the body arrives. decode: Arrow is checked. losses: micro-batches at scorers. select: "
                "the draw.",
                "s",
                Query(
                    f'sum by (stage) (rate(preceptor_stage_seconds_total{{{RUN}, stage!="total"}}{RATE}))'
                    f" / on () group_left () {_ANSWERS}",
                    "{{stage}}",
                ),
                stacked=True,
                runbooks=["PreceptorLatencyBudgetBurnsFast"],
            ),
            graph(
                "Mean time of a micro-batch",
                "gateway: waits for a place at a scorer. queue: on its way and in the scorer's queue. load: "
                "weights. forward: computes.",
                "s",
                Query(
                    f"sum(rate(preceptor_micro_batch_wait_seconds_total{{{RUN}}}{RATE})) / {_MICRO_BATCHES}", "gateway"
                ),
                Query(
                    f"sum by (part) (rate(preceptor_scorer_seconds_total{{{RUN}}}{RATE}))"
                    f" / on () group_left () {_MICRO_BATCHES}",
                    "{{part}}",
                ),
                stacked=True,
                runbooks=["PreceptorQueueSaturated"],
            ),
            graph(
                "Time since the last selection",
                "A run that trains should stay near zero.",
                "s",
                Query(f"time() - max(preceptor_last_answer_timestamp_seconds{{{RUN}}})", "since the last selection"),
                runbooks=["PreceptorSelectionStalled"],
            ),
            graph(
                "Waits for credit",
                "Times per second that a stream of the run had no credit for another super-batch: gateway.window_bytes "
                "are unanswered, and the trainer cannot run further ahead.",
                "suffix:/s",
                Query(f"sum(rate(preceptor_credit_waits_total{{{RUN}}}{RATE}))", "waits"),
            ),
            graph(
                "Time without credit",
                "Seconds per second, over the run's streams.",
                "s",
                Query(f"sum(rate(preceptor_credit_wait_seconds_total{{{RUN}}}{RATE})) or vector(0)", "waiting"),
            ),
        ],
    )


def _choosing() -> Row:
    return Row(
        "What is chosen?",
        [
            graph(
                "Mean score",
                "Of the candidates of the last answer and of those selected. The gap is what selection finds; "
                "where it closes, selection is as good as uniform.",
                "short",
                Query(f"avg by (of) (preceptor_mean_score{{{RUN}}})", "{{of}}"),
                signed=True,
            ),
            graph(
                "Candidates and selected examples",
                "Per second.",
                "suffix:/s",
                Query(f"sum(rate(preceptor_candidates_total{{{RUN}}}{RATE}))", "candidates"),
                Query(f"sum(rate(preceptor_selected_examples_total{{{RUN}}}{RATE}))", "selected"),
            ),
            graph(
                "Share of candidates selected, and of answers held back",
                "b / B of the last answer; the filtering ratio is what is missing from 1. Held back: the control arm "
                "of a run that has one.",
                "percentunit",
                Query(f"max(preceptor_selected_ratio{{{RUN}}})", "b / B"),
                Query(f"sum(rate(preceptor_control_super_batches_total{{{RUN}}}{RATE})) / {_ANSWERS}", "held back"),
                maximum=1,
            ),
        ],
    )


def _running_ahead() -> Row:
    return Row(
        "Does scoring run ahead?",
        [
            graph(
                "Examples in the memory bank",
                "After what was last done to it; nothing for a run without one.",
                "short",
                Query(f"max(preceptor_bank_examples{{{RUN}}})", "examples"),
            ),
            graph(
                "Examples into the memory bank and out of it",
                "Per second. Evicted: left unused to make room, so that scoring was in vain; it runs too far ahead.",
                "suffix:/s",
                Query(f"sum(rate(preceptor_bank_remembered_examples_total{{{RUN}}}{RATE}))", "put in"),
                Query(f"sum(rate(preceptor_bank_sampled_examples_total{{{RUN}}}{RATE}))", "sampled"),
                Query(f"sum(rate(preceptor_bank_evicted_examples_total{{{RUN}}}{RATE}))", "evicted"),
            ),
            graph(
                "Sub-batches that the memory bank was too short for",
                "Refused per second, because scoring is behind; a trainer that waits asks again and again.",
                "suffix:/s",
                Query(f"sum(rate(preceptor_bank_short_samples_total{{{RUN}}}{RATE}))", "refused"),
            ),
        ],
    )


def _stale() -> Row:
    return Row(
        "How stale?",
        [
            graph(
                "Age of the learner copy",
                "Steps between the push that was used and the step that asked, at the last answer, and the run's "
                "bound where it has one.",
                "short",
                Query(f"max(preceptor_staleness_steps{{{RUN}}})", "age"),
                Query(f"max(preceptor_max_staleness_steps{{{RUN}}})", "bound", is_bound=True),
                runbooks=["PreceptorLearnerCopyStale", "PreceptorPushesStopped"],
            ),
            graph(
                "Mean time of a push",
                "From the first byte to the commit.",
                "s",
                Query(
                    f"sum(rate(preceptor_weight_push_seconds_total{{{RUN}}}{RATE}))"
                    f" / sum(rate(preceptor_weight_pushes_total{{{RUN}}}{RATE}))",
                    "push",
                ),
            ),
            graph(
                "Pushes that failed",
                "Per second, by status code.",
                "suffix:/s",
                Query(
                    or_none(f"sum by (code) (rate(preceptor_failed_weight_pushes_total{{{RUN}}}{RATE}))", "code"),
                    "{{code}}",
                ),
                runbooks=["PreceptorPushesFail"],
            ),
            graph(
                "Steps that the service trains",
                "Per second, of a co-trained online model; nothing for a run whose learner copy is pushed.",
                "suffix:/s",
                Query(f"sum(rate(preceptor_co_trained_steps_total{{{RUN}}}{RATE}))", "steps"),
            ),
            graph(
                "Time that scorers train",
                "Seconds per second, loading and storing included.",
                "s",
                Query(f"sum(rate(preceptor_co_training_seconds_total{{{RUN}}}{RATE}))", "training"),
            ),
            graph(
                "Update loss of the online model",
                "Mean over the block trained last.",
                "short",
                Query(f"max(preceptor_co_training_loss{{{RUN}}})", "loss"),
            ),
        ],
    )


def _paying() -> Row:
    return Row(
        "Does it pay?",
        [
            graph(
                "Savings: expected, and needed to break even",
                "Share of learner updates. Selection pays where the run expects more than it needs.",
                "percentunit",
                Query(f"max(preceptor_expected_savings_ratio{{{RUN}}})", "expected"),
                Query(f"max(preceptor_break_even_savings_ratio{{{RUN}}})", "needed"),
                runbooks=["PreceptorComputeNegative"],
            ),
            graph(
                "Forward pass of one example",
                "Floating-point operations, by model.",
                "si:FLOP",
                Query(f"max by (model) (preceptor_forward_flops{{{RUN}}})", "{{model}}"),
            ),
            graph(
                "Compute spent on scoring",
                "Floating-point operations per second of the forward passes that scored this run.",
                "flops",
                Query(f"sum(rate(preceptor_scoring_flops_total{{{RUN}}}{RATE}))", "scoring"),
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
                    f" / on () group_left () {_ANSWERS}",
                    "{{reason}}",
                ),
                limits=Limits(yellow=0.001, red=0.01),
                runbooks=["PreceptorFallbackActive"],
            ),
            graph(
                "Failed super-batches by code",
                "Super-batches answered with an error, per second.",
                "suffix:/s",
                Query(
                    or_none(f"sum by (code) (rate(preceptor_failed_super_batches_total{{{RUN}}}{RATE}))", "code"),
                    "{{code}}",
                ),
                runbooks=["PreceptorErrorBudgetBurnsFast"],
            ),
            graph(
                "Reference losses by source",
                "Candidates per second of a run that names a table of reference losses: found in it, or scored live "
                "because it lacks their example_id.",
                "suffix:/s",
                Query(
                    or_none(f"sum by (source) (rate(preceptor_reference_losses_total{{{RUN}}}{RATE}))", "source"),
                    "{{source}}",
                ),
            ),
            graph(
                "Scores that are not finite, and micro-batches scored again",
                "Per second: candidates left out because of their score, and micro-batches whose scorer was lost "
                "or too slow.",
                "suffix:/s",
                Query(f"sum(rate(preceptor_non_finite_scores_total{{{RUN}}}{RATE}))", "not finite"),
                Query(f"sum(rate(preceptor_rescored_micro_batches_total{{{RUN}}}{RATE}))", "scored again"),
                runbooks=["PreceptorNonFiniteScores", "PreceptorScorersLost"],
            ),
        ],
    )
