"""The service's messages as the dataclasses of `preceptor.answers`. Called by client, stream and weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from preceptor.answers import (
    PushedWeights,
    Remembered,
    RunCost,
    RunStatus,
    Sampled,
    Scores,
    Selection,
    timings_from_proto,
)
from preceptor.errors import InternalError
from preceptor.runs import RunSpec, seconds, spec_from_proto
from preceptor.v1 import memory_bank_pb2, run_pb2, selection_pb2, weights_pb2


def selection_from_proto(message: selection_pb2.Selection) -> Selection:
    """Returns the answer that `message` carries; its arrays are copies, so that they are writable.

    Raises:
        InternalError: the bytes of an array do not fit its type.
    """
    return Selection(
        step=message.step,
        rank=message.rank,
        indices=_wholes(message.indices),
        scores=_floats(message.scores),
        learner_version=message.learner_version if message.HasField("learner_version") else None,
        learner_step=message.learner_step if message.HasField("learner_step") else None,
        staleness_steps=message.staleness_steps if message.HasField("staleness_steps") else None,
        is_fallback=message.is_fallback,
        non_finite_count=message.non_finite_count,
        timings=timings_from_proto(message.timings),
        weights=_floats(message.weights) if message.weights else None,
        is_control=message.is_control,
    )


def scores_from_proto(message: selection_pb2.ScoreResponse) -> Scores:
    """Returns the losses and scores that `message` carries.

    Raises:
        InternalError: the bytes of an array do not fit its type.
    """
    return Scores(
        learner_losses=_floats(message.learner_losses) if message.learner_losses else None,
        reference_losses=_floats(message.reference_losses) if message.reference_losses else None,
        scores=_floats(message.scores),
        learner_version=message.learner_version if message.HasField("learner_version") else None,
        learner_step=message.learner_step if message.HasField("learner_step") else None,
        timings=timings_from_proto(message.timings),
        learner_gradient_norms=_floats(message.learner_gradient_norms) if message.learner_gradient_norms else None,
    )


def remembered_from_proto(message: memory_bank_pb2.RememberResponse) -> Remembered:
    """Returns what was put into a bank.

    Raises:
        InternalError: the bytes of an array do not fit its type.
    """
    return Remembered(
        scores=_floats(message.scores),
        learner_version=message.learner_version if message.HasField("learner_version") else None,
        learner_step=message.learner_step if message.HasField("learner_step") else None,
        non_finite_count=message.non_finite_count,
        evicted=message.evicted,
        examples=message.examples,
    )


def sampled_from_proto(step: int, rank: int, message: memory_bank_pb2.SampleBankResponse) -> Sampled:
    """Returns what was sampled from a bank at that step.

    Raises:
        InternalError: the bytes of an array do not fit its type.
    """
    texts = list(message.example_id_text)
    return Sampled(
        step=step,
        rank=rank,
        example_id=texts or _wholes(message.example_id),
        scores=_floats(message.scores),
        learner_versions=_wholes(message.learner_versions) if message.learner_versions else None,
        staleness_steps=step - _wholes(message.learner_steps) if message.learner_steps else None,
        examples=message.examples,
        weights=_floats(message.weights) if message.weights else None,
        is_control=message.is_control,
    )


def status_from_proto(message: run_pb2.Run) -> RunStatus:
    """Returns the state of a run that `message` carries.

    Raises:
        InternalError: its spec cannot be read.
    """
    return RunStatus(
        spec=spec_of(message),
        create_time_s=seconds(message.create_time),
        micro_batch_rows=message.micro_batch_rows,
        learner_version=message.learner_version if message.HasField("learner_version") else None,
        learner_step=message.learner_step if message.HasField("learner_step") else None,
        reference_digest=message.reference_digest if message.HasField("reference_digest") else None,
        reference_fold_1_digest=(
            message.reference_fold_1_digest if message.HasField("reference_fold_1_digest") else None
        ),
        last_step=message.last_step if message.HasField("last_step") else None,
        super_batches=message.super_batches,
        candidates=message.candidates,
        selected=message.selected,
        fallbacks=message.fallbacks,
        failures=message.failures,
        cost=_cost_from_proto(message.cost) if message.HasField("cost") else None,
        owner=message.owner if message.HasField("owner") else None,
        learner_commit_time_s=seconds(message.learner_commit_time) if message.HasField("learner_commit_time") else None,
        last_answer_time_s=seconds(message.last_answer_time) if message.HasField("last_answer_time") else None,
        control_super_batches=message.control_super_batches,
        forward_s=seconds(message.forward_time),
        answer_s=seconds(message.answer_time),
        co_training_s=seconds(message.co_training_time),
    )


def spec_of(message: run_pb2.Run) -> RunSpec:
    """Returns the settings of a run.

    Raises:
        InternalError: they cannot be read.
    """
    try:
        return spec_from_proto(message.spec)
    except ValueError as error:
        raise InternalError(f"the service answered a run that cannot be read: {error}") from error


def pushed_from_proto(message: weights_pb2.PushWeightsResponse) -> PushedWeights:
    """Returns the committed version that `message` carries."""
    return PushedWeights(
        version=message.version.version,
        step=message.version.step,
        digest=message.version.digest,
        replicas_loaded=message.replicas_loaded,
        replicas_asked=message.replicas_asked,
    )


def _cost_from_proto(message: run_pb2.RunCost) -> RunCost:
    return RunCost(
        learner_flops=message.learner_flops,
        learner_copy_flops=message.learner_copy_flops,
        reference_flops=message.reference_flops,
        ratio=message.ratio,
        break_even_savings=message.break_even_savings,
        expected_savings=message.expected_savings,
        compute_ratio=message.compute_ratio,
        reference_scored_share=message.reference_scored_share,
    )


def _floats(data: bytes) -> NDArray[np.float32]:
    return _array(data, np.dtype("<f4")).astype(np.float32)


def _wholes(data: bytes) -> NDArray[np.int64]:
    return _array(data, np.dtype("<i8")).astype(np.int64)


def _array(data: bytes, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    try:
        return np.frombuffer(data, dtype=dtype)
    except ValueError as error:
        raise InternalError(f"the service answered an array that cannot be read: {error}") from error
