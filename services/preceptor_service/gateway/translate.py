"""Our answers to messages of the contract."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from preceptor.errors import OverloadedError, PreceptorError
from preceptor.runs import spec_to_proto
from preceptor.v1 import memory_bank_pb2, run_pb2, selection_pb2, weights_pb2
from preceptor_service.cost_meter import Cost
from preceptor_service.gateway.status import text_of
from preceptor_service.memory_bank.bank import Put, Sample
from preceptor_service.memory_bank.ids import are_texts, as_texts
from preceptor_service.reported_metrics import Reported
from preceptor_service.run_store import RunRecord
from preceptor_service.runs import ActiveRun, Pinned, StoredRun
from preceptor_service.selected import Scored, Selected, Stages
from preceptor_service.weight_versions import WeightsVersion


def selection(
    step: int, rank: int, selected: Selected, receive_s: float, total_s: float, is_control: bool = False
) -> selection_pb2.Selection:
    """Returns the answer to one super-batch."""
    pinned = selected.pinned if len(selected.scores) else None  # no version is behind an unscored draw
    learner = pinned.learner if pinned else None
    return selection_pb2.Selection(
        step=step,
        rank=rank,
        indices=_wholes(selected.indices),
        scores=_floats(selected.scores),
        learner_version=learner.version if learner else None,
        learner_step=learner.step if learner else None,
        staleness_steps=pinned.staleness_steps if pinned else None,
        is_fallback=selected.is_fallback,
        non_finite_count=selected.non_finite_count,
        timings=_timings(selected.stages, receive_s, total_s),
        weights=_floats(selected.weights),
        is_control=is_control,
    )


def scores(
    scored: Scored, pinned: Pinned, stages: Stages, receive_s: float, total_s: float
) -> selection_pb2.ScoreResponse:
    """Returns losses and scores of one super-batch."""
    return selection_pb2.ScoreResponse(
        learner_losses=_floats(scored.learner_losses),
        learner_gradient_norms=_floats(scored.learner_gradient_norms),
        reference_losses=_floats(scored.reference_losses),
        scores=_floats(scored.scores),
        learner_version=pinned.learner.version if pinned.learner else None,
        learner_step=pinned.learner.step if pinned.learner else None,
        timings=_timings(stages, receive_s, total_s),
    )


def remembered(put: Put) -> memory_bank_pb2.RememberResponse:
    """Returns the answer to a super-batch that was put into a bank."""
    return memory_bank_pb2.RememberResponse(
        scores=_floats(put.scores),
        learner_version=put.learner_version or None,
        learner_step=put.learner_step if put.learner_version else None,
        non_finite_count=len(put.scores) - int(np.isfinite(put.scores).sum()),
        evicted=put.evicted,
        examples=put.examples,
    )


def sampled(sample: Sample, is_control: bool) -> memory_bank_pb2.SampleBankResponse:
    """Returns a sub-batch from a bank."""
    texts, has_learner = are_texts(sample.ids), bool(sample.learner_versions.all())
    return memory_bank_pb2.SampleBankResponse(
        example_id=b"" if texts else _wholes(sample.ids),
        example_id_text=as_texts(sample.ids) if texts else (),
        scores=_floats(sample.scores),
        learner_versions=_wholes(sample.learner_versions) if has_learner else b"",
        learner_steps=_wholes(sample.learner_steps) if has_learner else b"",
        weights=_floats(sample.weights),
        examples=sample.examples,
        is_control=is_control,
    )


def failure(step: int, rank: int, error: PreceptorError) -> selection_pb2.Failure:
    """Returns the answer to a super-batch that could not be selected from."""
    retry_after_s = error.retry_after_s if isinstance(error, OverloadedError) else None
    return selection_pb2.Failure(
        step=step,
        rank=rank,
        code=error.code,
        reason=error.reason,
        message=text_of(error),
        retry_after=None if retry_after_s is None else _duration(retry_after_s),
    )


def listed(run_: ActiveRun | StoredRun) -> run_pb2.Run:
    """Returns a run as this gateway sees it, or what is stored of one that it does not serve."""
    if isinstance(run_, ActiveRun):
        return run(run_)
    heads = run_.heads
    return _stored(run_.record, heads.get("learner"), heads.get("reference"), heads.get("reference_fold_1"))


def run(active: ActiveRun) -> run_pb2.Run:
    """Returns a run as this gateway sees it."""
    counters = active.counters
    message = run_pb2.Run(
        columns=[
            run_pb2.Column(name=column.name, element_type=column.element_type, shape=column.shape)
            for column in active.columns
        ],
        last_step=active.last_step,
        super_batches=counters.super_batches,
        candidates=counters.candidates,
        selected=counters.selected,
        fallbacks=counters.fallbacks,
        failures=counters.failures,
        cost=_cost(active.cost),
        last_answer_time=None if counters.last_answer_time_s is None else _timestamp(counters.last_answer_time_s),
        control_super_batches=counters.control_super_batches,
        forward_time=_duration(counters.forward_s),
        answer_time=_duration(counters.answer_s),
        co_training_time=_duration(counters.co_training_s),
    )
    message.MergeFrom(_stored(active.record, active.learner, active.reference, active.reference_fold_1))
    return message


def weights_version(version: WeightsVersion) -> weights_pb2.WeightsVersion:
    """Returns one committed version."""
    return weights_pb2.WeightsVersion(
        version=version.version,
        step=version.step,
        digest=version.digest,
        total_bytes=version.total_bytes,
        commit_time=_timestamp(version.commit_time_s),
    )


def reported(found: Reported) -> selection_pb2.ListMetricsResponse:
    """Returns what was reported of one run."""
    return selection_pb2.ListMetricsResponse(
        series=[
            selection_pb2.MetricSeries(name=name, steps=list(values), values=list(values.values()))
            for name, values in found.series.items()
        ],
        damaged_pieces=found.damaged_pieces,
    )


def _stored(
    record: RunRecord,
    learner: WeightsVersion | None,
    reference: WeightsVersion | None,
    reference_fold_1: WeightsVersion | None,
) -> run_pb2.Run:
    """Returns what is told of a run by its record and its newest weights."""
    return run_pb2.Run(
        spec=spec_to_proto(record.spec),
        create_time=_timestamp(record.create_time_s),
        micro_batch_rows=record.micro_batch_rows,
        learner_version=learner.version if learner else None,
        learner_step=learner.step if learner else None,
        learner_commit_time=_timestamp(learner.commit_time_s) if learner else None,
        reference_digest=reference.digest if reference else None,
        reference_fold_1_digest=reference_fold_1.digest if reference_fold_1 else None,
        owner=record.owner,
    )


def _cost(cost: Cost | None) -> run_pb2.RunCost | None:
    if cost is None:
        return None
    return run_pb2.RunCost(**dataclasses.asdict(cost))


def _floats(values: NDArray[np.float32] | None) -> bytes:
    return b"" if values is None else values.astype("<f4", copy=False).tobytes()


def _wholes(values: NDArray[Any]) -> bytes:
    return values.astype("<i8", copy=False).tobytes()


def _timings(stages: Stages, receive_s: float, total_s: float) -> selection_pb2.StageTimings:
    return selection_pb2.StageTimings(
        receive=_duration(receive_s),
        decode=_duration(stages.decode_s),
        losses=_duration(stages.losses_s),
        select=_duration(stages.select_s),
        total=_duration(total_s),
        forward=_duration(stages.forward_s),
        rescored_micro_batches=stages.rescored_micro_batches,
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def _timestamp(seconds: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromNanoseconds(round(seconds * 1e9))
    return timestamp
