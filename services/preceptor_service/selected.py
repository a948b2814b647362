"""What the pipeline is given and gives: a super-batch as it arrived, its scores, the sub-batch, and where time went."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from preceptor_service.runs import Pinned
from preceptor_service.scoring.pool import Losses, MicroBatch, ScoringModels
from preceptor_service.super_batch import Body

FallbackReason = Literal["stale", "deadline", "scorers"]
"""Why a draw was uniform: the learner copy was too old, the answer would have been too late, scorers were lost."""


@dataclass
class Stages:
    """Where the time of one super-batch went, in seconds.

    Attributes:
        decode_s, losses_s, select_s: the stages, one after the other.
        wait_s: micro-batches waiting for the budget of bytes in flight, summed.
        forward_s, load_s: forward passes and loads of weights at scorers, summed over micro-batches.
        queue_s: the rest of their time at scorers and on the way there and back, summed.
        micro_batches: how many were scored.
        rescored_micro_batches: how many of them more than once.
        learner_rows, reference_rows: of the forward passes of learner copy and reference, or of both references,
            padding included; what both share is the learner copy's. Of passes that came to nothing they know nothing.
        reference_losses_found, reference_losses_missing: candidates that the run's table had, and had not.
    """

    decode_s: float = 0.0
    losses_s: float = 0.0
    select_s: float = 0.0
    wait_s: float = 0.0
    forward_s: float = 0.0
    load_s: float = 0.0
    queue_s: float = 0.0
    micro_batches: int = 0
    rescored_micro_batches: int = 0
    learner_rows: int = 0
    reference_rows: int = 0
    reference_losses_found: int = 0
    reference_losses_missing: int = 0

    def count(self, models: ScoringModels, micro_batch: MicroBatch, losses: Losses, called_s: float) -> None:
        """Counts a micro-batch whose losses came `called_s` after it was handed to a scorer."""
        self.micro_batches += 1
        by_learner = sum(ref == models.learner for ref, _ in models.forward_passes)
        self.learner_rows += by_learner * micro_batch.rows
        self.reference_rows += (len(models.forward_passes) - by_learner) * micro_batch.rows
        self.forward_s += losses.forward_s
        self.load_s += losses.load_s
        self.queue_s += max(0.0, called_s - losses.forward_s - losses.load_s)


@dataclass(frozen=True)
class Arrived:
    """A super-batch as it arrived: its body, B as announced, and when it must be answered (event loop's clock).

    `digest` names the body, as the client chose it.
    """

    body: Body
    rows: int
    deadline: float
    digest: bytes = b""


@dataclass(frozen=True)
class Scored:
    """What was measured of B candidates, and their scores: float32 `[B]`, None where the rule does not need it."""

    learner_losses: NDArray[np.float32] | None
    learner_gradient_norms: NDArray[np.float32] | None
    reference_losses: NDArray[np.float32] | None
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class Selected:
    """The sub-batch: int64 `[b]` positions in the order drawn, and the float32 `[B]` scores behind it.

    `weights` are importance weights, float32 `[b]`; empty where the run's selector has none.
    `scores` is empty where nothing was scored and the draw was uniform: as a `fallback`, for the reason that it gives,
    or by the run's schedule. `example_id` is the trainer's, an Arrow array `[B]` of int64 or string, or None.
    `is_repeat` says that a co-trained run handed it out before.
    """

    indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    weights: NDArray[np.float32]
    pinned: Pinned
    fallback: FallbackReason | None
    non_finite_count: int
    example_id: Any = None
    stages: Stages = field(default_factory=Stages)
    is_repeat: bool = False

    @property
    def is_fallback(self) -> bool:
        """Whether nothing was scored, or not in time."""
        return self.fallback is not None
