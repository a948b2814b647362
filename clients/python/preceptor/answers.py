"""What the service answers, as a trainer sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preceptor.runs import RunSpec, seconds
from preceptor.v1 import selection_pb2


@dataclass(frozen=True)
class Timings:
    """Where the time of one super-batch went inside the gateway, in seconds.

    Attributes:
        receive_s: from the header to the last chunk.
        decode_s: decoding and validating.
        losses_s: from the first micro-batch handed out to the last loss back.
        select_s: scores and selection.
        total_s: from the header to the answer.
        forward_s: forward passes, summed over micro-batches.
        rescored_micro_batches: micro-batches scored again after a scorer was lost.
    """

    receive_s: float
    decode_s: float
    losses_s: float
    select_s: float
    total_s: float
    forward_s: float
    rescored_micro_batches: int


@dataclass(frozen=True)
class Selection:
    """The answer to one super-batch of B candidates.

    Attributes:
        step: as asked.
        rank: as asked.
        indices: int64 `[b]`, positions in the super-batch, in the order drawn, all different.
        scores: float32 `[B]`, the score of every candidate, NaN where a loss was not finite; empty where nothing was
            scored: where `is_fallback`, and where the run's schedule draws the whole sub-batch uniformly.
        learner_version: the one version behind every score; None where none was used.
        learner_step: the step at which that version was pushed.
        staleness_steps: `step - learner_step`.
        is_fallback: drawn uniformly because of the deadline or staleness policy of the run, not of its schedule.
        non_finite_count: candidates left out because their score was not finite.
        timings: where the time went.
        weights: float32 `[b]`, importance weights of `indices`, above 0, the largest 1, all 1 where nothing was
            scored; multiply each example's loss by its own. None unless the run's selector is proportional.
        is_control: the step was held back as the run's control arm, and therefore drawn uniformly; not a fallback.
    """

    step: int
    rank: int
    indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    learner_version: int | None
    learner_step: int | None
    staleness_steps: int | None
    is_fallback: bool
    non_finite_count: int
    timings: Timings
    weights: NDArray[np.float32] | None = None
    is_control: bool = False


@dataclass(frozen=True)
class Scores:
    """Losses and scores of one super-batch of B candidates, nothing selected.

    Attributes:
        learner_losses: float32 `[B]`, or None where the score rule needs none.
        reference_losses: float32 `[B]`, or None where the score rule needs none.
        scores: float32 `[B]`.
        learner_version: the one version behind every loss; None where none was used.
        learner_step: the step at which that version was pushed.
        timings: where the time went.
        learner_gradient_norms: float32 `[B]`, or None where the score rule needs none.
    """

    learner_losses: NDArray[np.float32] | None
    reference_losses: NDArray[np.float32] | None
    scores: NDArray[np.float32]
    learner_version: int | None
    learner_step: int | None
    timings: Timings
    learner_gradient_norms: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Remembered:
    """A super-batch of B candidates that is in the memory bank.

    Attributes:
        scores: float32 `[B]`, NaN where a loss was not finite.
        learner_version: the one version behind every score; None where none was used.
        learner_step: the step at which that version was pushed.
        non_finite_count: candidates left out because their score was not finite.
        evicted: examples that left to make room: scoring is further ahead than the bank has room for.
        examples: examples that the bank held then.
    """

    scores: NDArray[np.float32]
    learner_version: int | None
    learner_step: int | None
    non_finite_count: int
    evicted: int
    examples: int


@dataclass(frozen=True)
class Sampled:
    """A sub-batch of b examples from the memory bank.

    Attributes:
        step: as asked.
        rank: as asked.
        example_id: `[b]`, in the order drawn, all different: an int64 array, or the texts as a list.
        scores: float32 `[b]`, the score that each was drawn by.
        learner_versions: int64 `[b]`, the version behind each score; None where the score rule needs none.
        staleness_steps: int64 `[b]`, `step` minus the step at which that version was pushed; None likewise.
        examples: examples that the bank held then, without those that left with this.
        weights: float32 `[b]`, importance weights, above 0, the largest 1; None unless the run's selector is
            proportional.
        is_control: the step was held back as the run's control arm, and therefore drawn uniformly from what the bank
            could give.
    """

    step: int
    rank: int
    example_id: Any
    scores: NDArray[np.float32]
    learner_versions: NDArray[np.int64] | None
    staleness_steps: NDArray[np.int64] | None
    examples: int
    weights: NDArray[np.float32] | None = None
    is_control: bool = False


@dataclass(frozen=True)
class PushedWeights:
    """Weights that are durable in the service.

    Attributes:
        version: committed version, 1 for the first.
        step: the trainer's step that they belong to.
        digest: `"sha256:..."` of the safetensors file.
        replicas_loaded: scorer replicas that had loaded them when the push was answered.
        replicas_asked: scorer replicas that were asked to.
    """

    version: int
    step: int
    digest: str
    replicas_loaded: int
    replicas_asked: int


@dataclass(frozen=True)
class RunCost:
    """What selection costs beside uniform training: a prediction from counted operations.

    Attributes:
        learner_flops: floating-point operations of one forward pass of the learner on one example.
        learner_copy_flops: the same of the learner copy; 0 where the score rule needs none.
        reference_flops: the same of the reference; 0 where the score rule needs none.
        ratio: rows of forward passes that scored, over examples selected: B / b, more for padding, less for what was
            drawn unscored.
        break_even_savings: share of learner updates that must be saved for selection to pay; 1 or above: it cannot.
        expected_savings: share that is expected to be saved.
        compute_ratio: compute over that of uniform training at `expected_savings`; it pays below 1.
        reference_scored_share: of the rows in `ratio` those that the reference scored; a table had the reference losses
            of the others. From 0 to 1.
    """

    learner_flops: float
    learner_copy_flops: float
    reference_flops: float
    ratio: float
    break_even_savings: float
    expected_savings: float
    compute_ratio: float
    reference_scored_share: float

    @property
    def is_positive(self) -> bool:
        """Whether selection pays at `expected_savings`."""
        return self.compute_ratio < 1


@dataclass(frozen=True)
class RunStatus:
    """A run as the answering gateway sees it; counters are of that gateway since it started.

    Attributes:
        spec: the settings.
        create_time_s: seconds since the epoch.
        micro_batch_rows: rows of one forward pass.
        learner_version: latest committed version, or None.
        learner_step: the step at which it was pushed, or None.
        reference_digest: digest of the reference, of fold 0 where there are two, or None.
        last_step: highest step answered, or None.
        super_batches: super-batches answered.
        candidates: examples offered in them.
        selected: examples selected.
        fallbacks: answers that fell back to uniform selection.
        failures: super-batches that ended in an error.
        cost: whether selection pays; None before something was scored and selected, for a score rule that costs
            nothing, and where the operations cannot be counted.
        reference_fold_1_digest: digest of the reference of fold 1, or None.
        owner: identity of who created it; None where the service knew no callers.
        learner_commit_time_s: when `learner_version` was committed, in seconds since the epoch, or None.
        last_answer_time_s: when a super-batch was last answered, in seconds since the epoch, or None.
        control_super_batches: answers of steps that were held back as the control arm.
        forward_s: seconds of the forward passes that scored, summed over micro-batches; for the memory bank, too.
        answer_s: seconds from header to answer, summed over answers, several of which overlap.
        co_training_s: seconds of scorers that trained what the run co-trains, loading and storing included.
    """

    spec: RunSpec
    create_time_s: float
    micro_batch_rows: int
    learner_version: int | None
    learner_step: int | None
    reference_digest: str | None
    last_step: int | None
    super_batches: int
    candidates: int
    selected: int
    fallbacks: int
    failures: int
    cost: RunCost | None
    reference_fold_1_digest: str | None = None
    owner: str | None = None
    learner_commit_time_s: float | None = None
    last_answer_time_s: float | None = None
    control_super_batches: int = 0
    forward_s: float = 0.0
    answer_s: float = 0.0
    co_training_s: float = 0.0

    @property
    def staleness_steps(self) -> int | None:
        """Steps from the push of the learner copy to the highest step answered; 0 for a push ahead of it."""
        if self.last_step is None or self.learner_step is None:
            return None
        return max(0, self.last_step - self.learner_step)


def timings_from_proto(message: selection_pb2.StageTimings) -> Timings:
    """Returns the timings that `message` carries."""
    return Timings(
        receive_s=seconds(message.receive),
        decode_s=seconds(message.decode),
        losses_s=seconds(message.losses),
        select_s=seconds(message.select),
        total_s=seconds(message.total),
        forward_s=seconds(message.forward),
        rescored_micro_batches=message.rescored_micro_batches,
    )
