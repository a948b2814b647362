"""What the pipeline needs of scorers, whoever runs them: the two pools and their tests share it.

No torch, no ray, no grpc here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from preceptor.co_training import CoTraining
from preceptor.errors import PreceptorError

Measure = Literal["loss", "gradient_norm"]
"""What a scorer can compute of an example; the names of the methods of a task."""


@dataclass(frozen=True)
class ModelRef:
    """One set of weights to score with, by content: equal refs give equal losses.

    Attributes:
        architecture: name in the model registry.
        config: its settings as canonical JSON (sorted keys), so that a ref is hashable.
        digest: `"sha256:..."` of the safetensors blob in the weight store.
        total_bytes: size of that blob.
    """

    architecture: str
    config: str
    digest: str
    total_bytes: int


@dataclass(frozen=True)
class ScoringModels:
    """The models behind one super-batch; None where the score rule needs no such loss.

    `run_id` groups the learner versions of one run, so that a scorer keeps the two newest and drops
    older ones first. `learner_measures` says what is computed of the learner; of a reference it is always the loss.
    Where there are two references, `reference` is that of fold 0, and both score every candidate.
    """

    run_id: str
    task: str
    learner: ModelRef | None
    reference: ModelRef | None
    learner_measures: tuple[Measure, ...] = ("loss",)
    reference_fold_1: ModelRef | None = None

    @property
    def references(self) -> tuple[ModelRef, ...]:
        """Those that are there."""
        return tuple(one for one in (self.reference, self.reference_fold_1) if one is not None)

    @property
    def forward_passes(self) -> frozenset[tuple[ModelRef, Measure]]:
        """What a scorer computes of each micro-batch; learner and reference share what is the same of both."""
        of_learner = [] if self.learner is None else [(self.learner, measure) for measure in self.learner_measures]
        of_references: list[tuple[ModelRef, Measure]] = [(reference, "loss") for reference in self.references]
        return frozenset([*of_learner, *of_references])


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass.

    Attributes:
        columns: name → array `[rows, ...]`, read-only; rows is at most the run's `micro_batch_rows`.
        row_count: how many of those rows are candidates; the rest repeats the last one as padding.
        traceparent: the span that waits for the losses, as W3C trace context; None where it is not traced.
        failed_at: names of scorers that failed with it, and are to leave it to others.
    """

    columns: Mapping[str, NDArray[np.generic]]
    row_count: int
    traceparent: str | None = None
    failed_at: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of the forward pass, padding included."""
        return max((len(column) for column in self.columns.values()), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of the columns."""
        return sum(column.nbytes for column in self.columns.values())


@dataclass(frozen=True)
class Losses:
    """Per-example losses and gradient norms of one micro-batch, float32 `[row_count]`; None where not asked for.

    `forward_s` is the time of the forward passes in seconds; `load_s` what this micro-batch waited for weights that
    the scorer did not hold, 0 where it held them.
    """

    learner: NDArray[np.float32] | None
    reference: NDArray[np.float32] | None
    forward_s: float
    load_s: float
    learner_gradient_norms: NDArray[np.float32] | None = None
    reference_fold_1: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Trainee:
    """A model to train.

    Attributes:
        architecture, config: as in `ModelRef`.
        weights, optimiser: digests of what the version before left; `optimiser` is None for the untrained one.
    """

    architecture: str
    config: str
    weights: str | None = None
    optimiser: str | None = None


@dataclass(frozen=True)
class Training:
    """One block to train a run's online model on, and perhaps its reference. Equal trainings give equal weights.

    Attributes:
        run_id: in whose journal the block lies.
        task: what it trains on.
        spec: how.
        online: the online model.
        reference: the reference; None where it is not trained in the service.
        block: the steps to train on; None: build the untrained models, from nothing.
    """

    run_id: str
    task: str
    spec: CoTraining
    online: Trainee
    reference: Trainee | None = None
    block: int | None = None


@dataclass(frozen=True)
class TrainedModel:
    """What training put into the weight store, not committed yet.

    Attributes:
        weights, weights_bytes: digest and size of the weights.
        optimiser: digest of what the next training needs besides; None for the untrained model.
        mean_loss: update loss, mean over the steps of the block; None for the untrained model.
    """

    weights: str
    weights_bytes: int
    optimiser: str | None
    mean_loss: float | None


@dataclass(frozen=True)
class Trained:
    """What became of a training; `train_s` are the seconds that it took, loading and writing included."""

    online: TrainedModel
    reference: TrainedModel | None
    train_s: float


@dataclass(frozen=True)
class LoadReport:
    """How many scorer replicas hold the models now, of how many that were asked."""

    loaded: int
    asked: int


@dataclass(frozen=True)
class Deployed:
    """The deployments behind a gateway now.

    Attributes:
        target: scorers that are wanted: running, starting, being replaced.
        running: scorers that take micro-batches.
        updating: deployment → whether its replicas are being replaced.
    """

    target: int
    running: int
    updating: Mapping[str, bool]


class ScorerLostError(Exception):
    """A scorer died or was cut off while it held a micro-batch; another one may score it."""


class ScorerUnreachableError(ScorerLostError):
    """No scorer took the micro-batch, so it is not to blame; one may later."""


class ScorerFailedError(ScorerLostError):
    """A scorer lives, and failed; another one may not.

    Attributes:
        answer: what is said where all of them fail.
        scorer: its name; None where nobody gave it one.
    """

    def __init__(self, answer: PreceptorError) -> None:
        super().__init__(answer)
        self.answer = answer
        self.scorer: str | None = None


class ScorerPool(Protocol):
    """Scorers that turn micro-batches into losses."""

    async def losses(self, models: ScoringModels, batch: MicroBatch) -> Losses:
        """Scores one micro-batch on one scorer.

        Raises:
            ScorerLostError: the scorer was lost, or failed; call again.
            preceptor.errors.PreceptorError: what every scorer would answer.
        """
        ...

    async def train(self, training: Training) -> Trained:
        """Trains one block on one scorer, which reads it from the journal. Scoring goes on meanwhile.

        Raises:
            ScorerLostError: the scorer was lost, or failed; call again.
            FileNotFoundError: a sub-batch of the block is not in the journal, any more.
            preceptor.errors.PreceptorError: what every scorer would answer.
        """
        ...

    async def load(self, models: ScoringModels) -> LoadReport:
        """Asks every scorer to hold `models`, and waits until they do or say why not.

        Scoring goes on meanwhile. A hint: a scorer that was not there loads on demand.
        """
        ...

    def deployed(self) -> Deployed | None:
        """Tells how many scorers there are; None where nobody can. May block for as long as nobody answers."""
        ...

    async def close(self) -> None:
        """Stops what this pool started."""
        ...
