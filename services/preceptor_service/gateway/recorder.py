"""What happens to runs, put into counters, metrics and ledgers. Called by streams and pushes, on the event loop."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import numpy as np

from preceptor.errors import PreceptorError
from preceptor.runs import seconds
from preceptor.v1 import selection_pb2
from preceptor_service.cost_meter import Cost
from preceptor_service.gateway.ledger_entries import remembered_entry, sampled_entry, selected_entry
from preceptor_service.ledger.ledger import Ledger
from preceptor_service.memory_bank.bank import Put, Sample
from preceptor_service.memory_bank.bank_store import Answer
from preceptor_service.metrics import LEDGER_LOSSES, SERVICE_CODES, STAGES, GatewayMetrics
from preceptor_service.runs import ActiveRun, Pinned
from preceptor_service.schedule import is_held_back
from preceptor_service.scoring.pool import Trained
from preceptor_service.selected import FallbackReason, Selected, Stages
from preceptor_service.weight_versions import Role

_NO_GATEWAY = "no_gateway"
"""Why a client drew for itself, beside the reasons that a gateway has."""


class Recorder:
    """Records what one gateway answers, fails and commits. A run that was deleted meanwhile leaves no series."""

    def __init__(self, metrics: GatewayMetrics, ledger: Ledger) -> None:
        self._metrics = metrics
        self._streams: Counter[str] = Counter()
        self._ledger = ledger

    def opened(self, run: ActiveRun) -> None:
        """Records a new stream; begins the series of a run whose first event must be seen as an increase."""
        metrics, run_id = self._metrics, run.run_id
        self._streams[run_id] += 1
        if run.deleted.is_set():
            return
        for code in SERVICE_CODES:
            metrics.failures.labels(run_id, code)
        for reason in (*get_args(FallbackReason), _NO_GATEWAY):
            metrics.fallbacks.labels(run_id, reason)
        for source in ("table", "live") if run.table is not None else ():
            metrics.reference_losses.labels(run_id, source)
        credit = (metrics.credit_waits, metrics.credit_wait_seconds)
        for counter in (metrics.super_batches, metrics.refused, metrics.non_finite, metrics.rescored, *credit):
            counter.labels(run_id)
        if run.spec.control_fraction > 0:
            metrics.control_super_batches.labels(run_id)
        if run.spec.ledger:
            metrics.ledger_steps.labels(run_id)
            metrics.ledger_expired_steps.labels(run_id)
            for loss in LEDGER_LOSSES:
                metrics.ledger_lost_steps.labels(run_id, loss)

    def closed(self, run: ActiveRun) -> None:
        """Records the end of a stream. With a run's last one here its gauges end: others tell what is true from now."""
        self._streams[run.run_id] -= 1
        if not self._streams[run.run_id]:
            del self._streams[run.run_id]
            self._metrics.rest_run(run.run_id)

    def arrived(self, run: ActiveRun, step: int) -> None:
        """Shows how old the learner copy is for a super-batch that now waits to be answered."""
        if run.deleted.is_set():
            return
        metrics, run_id = self._metrics, run.run_id
        if run.spec.max_staleness_steps is not None:
            metrics.max_staleness.labels(run_id).set(run.spec.max_staleness_steps)
        if run.rule.needs_learner and run.learner is not None:
            metrics.staleness.labels(run_id).set(_age(step - run.learner.step))

    def answered(
        self,
        run: ActiveRun,
        header: selection_pb2.SuperBatchHeader,
        selected: Selected,
        answer: selection_pb2.Selection,
    ) -> None:
        """Records one answered super-batch; not for an answer that is given again."""
        if run.deleted.is_set():
            return
        run.counters.count(header.step, header.row_count, header.sub_batch_size, selected.is_fallback)
        metrics, run_id = self._metrics, run.run_id
        self._control(run, answer.is_control)
        run.counters.answer_s += seconds(answer.timings.total)
        metrics.super_batches.labels(run_id).inc()
        metrics.candidates.labels(run_id).inc(header.row_count)
        metrics.selected.labels(run_id).inc(header.sub_batch_size)
        metrics.selected_ratio.labels(run_id).set(header.sub_batch_size / header.row_count)
        metrics.last_answer.labels(run_id).set_to_current_time()
        metrics.non_finite.labels(run_id).inc(selected.non_finite_count)
        if selected.fallback is not None:
            metrics.fallbacks.labels(run_id, selected.fallback).inc()
        self._scores(run_id, selected)
        self._time(run, selected, answer)
        self._learner(run, selected.pinned)
        if run.spec.ledger:
            self._ledger.keep(run.record, selected_entry(header, selected))
        if (cost := run.cost) is not None:
            self._cost(run_id, cost)

    def failed(self, run: ActiveRun, error: PreceptorError) -> None:
        """Records a super-batch that was answered with `error`."""
        if not run.deleted.is_set():
            run.counters.failures += 1
            self._metrics.failures.labels(run.run_id, error.code).inc()

    def drawn_by_client(self, run: ActiveRun, count: int) -> None:
        """Records super-batches that no gateway answered, as a client tells afterwards."""
        if not run.deleted.is_set():
            self._metrics.fallbacks.labels(run.run_id, _NO_GATEWAY).inc(count)

    def refused(self, run: ActiveRun) -> None:
        """Records a super-batch that was refused as soon as it was announced, to be sent again."""
        if not run.deleted.is_set():
            self._metrics.refused.labels(run.run_id).inc()

    def pushed(self, run: ActiveRun, role: Role, spent_s: float) -> None:
        """Records weights that were committed `spent_s` after their first byte."""
        if not run.deleted.is_set():
            self._metrics.pushes.labels(run.run_id, role).inc()
            self._metrics.push_seconds.labels(run.run_id).inc(spent_s)

    def push_failed(self, run: ActiveRun, error: PreceptorError) -> None:
        """Records a push that ended with `error`."""
        if not run.deleted.is_set():
            self._metrics.failed_pushes.labels(run.run_id, error.code).inc()

    def remembered(self, run: ActiveRun, answer: Answer[Put], pinned: Pinned, stages: Stages) -> None:
        """Records a super-batch that was put into the run's memory bank; not one that was put in before."""
        if run.deleted.is_set() or not answer.is_new:
            return
        metrics, run_id, put = self._metrics, run.run_id, answer.operation
        self._begin_bank(run_id)
        run.counters.candidates += len(put.scores)
        finite = int(np.count_nonzero(np.isfinite(put.scores)))
        metrics.non_finite.labels(run_id).inc(len(put.scores) - finite)
        metrics.bank_remembered.labels(run_id).inc(finite)
        metrics.bank_evicted.labels(run_id).inc(put.evicted)
        metrics.bank_examples.labels(run_id).set(put.examples)
        self._scoring(run, stages)
        if run.spec.ledger:
            self._ledger.keep(run.record, remembered_entry(answer, pinned))
        if (cost := run.cost) is not None:
            self._cost(run_id, cost)

    def sampled(self, run: ActiveRun, answer: Answer[Sample]) -> None:
        """Records a sub-batch that was sampled from the run's memory bank; not one that was sampled before."""
        if run.deleted.is_set() or not answer.is_new:
            return
        metrics, run_id, counters, sample = self._metrics, run.run_id, run.counters, answer.operation
        self._begin_bank(run_id)
        counters.selected += len(sample.ids)
        counters.last_step = max(sample.key.step, counters.last_step or 0)
        metrics.bank_sampled.labels(run_id).inc(len(sample.ids))
        metrics.bank_examples.labels(run_id).set(sample.examples)
        self._control(run, is_held_back(run.spec, sample.key.step))
        if run.spec.ledger:
            self._ledger.keep(run.record, sampled_entry(answer))
        if (cost := run.cost) is not None:
            self._cost(run_id, cost)

    def found_too_few(self, run: ActiveRun) -> None:
        """Records a sub-batch that the run's memory bank was too short of examples for."""
        if not run.deleted.is_set():
            self._begin_bank(run.run_id)
            self._metrics.bank_short.labels(run.run_id).inc()

    def co_trained(self, run: ActiveRun, trained: Trained, steps: int) -> None:
        """Records a version that the service trained on so many steps."""
        metrics, run_id = self._metrics, run.run_id
        run.counters.co_training_s += trained.train_s
        metrics.co_trained_steps.labels(run_id).inc(steps)
        metrics.co_training_seconds.labels(run_id).inc(trained.train_s)
        if trained.online.mean_loss is not None:
            metrics.co_training_loss.labels(run_id).set(trained.online.mean_loss)

    def waits_for_credit(self, run: ActiveRun) -> None:
        """Records that a stream has no credit for another super-batch."""
        if not run.deleted.is_set():
            self._metrics.credit_waits.labels(run.run_id).inc()

    def waited_for_credit(self, run: ActiveRun, waited_s: float) -> None:
        """Records how long it had none."""
        if not run.deleted.is_set():
            self._metrics.credit_wait_seconds.labels(run.run_id).inc(waited_s)

    def _scores(self, run_id: str, selected: Selected) -> None:
        finite = np.isfinite(selected.scores)
        mean = self._metrics.mean_score
        if finite.any():
            mean.labels(run_id, "candidates").set(float(np.mean(selected.scores, where=finite)))
            mean.labels(run_id, "selected").set(float(np.mean(selected.scores[selected.indices])))

    def _time(self, run: ActiveRun, selected: Selected, answer: selection_pb2.Selection) -> None:
        metrics, run_id = self._metrics, run.run_id
        for stage in STAGES:
            spent = seconds(getattr(answer.timings, stage))
            metrics.stage_latency.labels(stage).observe(spent)
            metrics.stage_seconds.labels(run_id, stage).inc(spent)
        self._scoring(run, selected.stages)

    def _scoring(self, run: ActiveRun, stages: Stages) -> None:
        metrics, run_id, counters = self._metrics, run.run_id, run.counters
        counters.forward_s += stages.forward_s
        counters.learner_rows += stages.learner_rows
        counters.reference_rows += stages.reference_rows
        counters.reference_losses_found += stages.reference_losses_found
        counters.reference_losses_missing += stages.reference_losses_missing
        if run.table is not None:
            metrics.reference_losses.labels(run_id, "table").inc(stages.reference_losses_found)
            metrics.reference_losses.labels(run_id, "live").inc(stages.reference_losses_missing)
        if flops := run.flops.of_rows(stages.learner_rows, stages.reference_rows):
            metrics.scoring_flops.labels(run_id).inc(flops)
        metrics.micro_batches.labels(run_id).inc(stages.micro_batches)
        metrics.rescored.labels(run_id).inc(stages.rescored_micro_batches)
        metrics.micro_batch_wait_seconds.labels(run_id).inc(stages.wait_s)
        for part, spent in (("forward", stages.forward_s), ("load", stages.load_s), ("queue", stages.queue_s)):
            metrics.scorer_seconds.labels(run_id, part).inc(spent)

    def _control(self, run: ActiveRun, is_control: bool) -> None:
        run.counters.control_super_batches += is_control
        if run.spec.control_fraction > 0:
            self._metrics.control_super_batches.labels(run.run_id).inc(is_control)

    def _begin_bank(self, run_id: str) -> None:
        """Begins its series together, so that the first event of each is seen as an increase."""
        metrics = self._metrics
        for counter in (metrics.bank_remembered, metrics.bank_evicted, metrics.bank_sampled, metrics.bank_short):
            counter.labels(run_id)

    def _learner(self, run: ActiveRun, pinned: Pinned) -> None:
        """Shows the learner version of the answer, or the one that was too old for it."""
        metrics, run_id = self._metrics, run.run_id
        if pinned.learner is not None and pinned.staleness_steps is not None:
            metrics.learner_version.labels(run_id).set(pinned.learner.version)
            metrics.staleness.labels(run_id).set(_age(pinned.staleness_steps))
            metrics.last_push.labels(run_id).set(pinned.learner.commit_time_s)

    def _cost(self, run_id: str, cost: Cost) -> None:
        metrics = self._metrics
        metrics.forward_flops.labels(run_id, "learner").set(cost.learner_flops)
        metrics.forward_flops.labels(run_id, "learner_copy").set(cost.learner_copy_flops)
        metrics.forward_flops.labels(run_id, "reference").set(cost.reference_flops)
        metrics.break_even_savings.labels(run_id).set(cost.break_even_savings)
        metrics.expected_savings.labels(run_id).set(cost.expected_savings)
        metrics.compute_ratio.labels(run_id).set(cost.compute_ratio)
        metrics.compute_positive.labels(run_id).set(cost.is_positive)


def _age(staleness_steps: int) -> int:
    """Returns how old a learner copy is, for people: one that was pushed ahead of the step that asks is new."""
    return max(0, staleness_steps)
