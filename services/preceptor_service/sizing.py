"""How many scorers and gateways a trainer needs. Called by `preceptor size`; pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

TARGET_UTILISATION = 0.8
"""Share of their time that scorers and gateways shall work: what is left takes up bursts, loads and lost replicas."""

_LEARNER_VERSIONS = 2  # the one in use, and the one that loads beside it
_SUPER_BATCHES_IN_WINDOW = 2  # one is scored while the next one is sent


@dataclass(frozen=True)
class TrainerLoad:
    """What a trainer asks for: in each step, every rank offers one super-batch.

    Attributes:
        super_batch: B, candidates that one rank offers; 1 or above.
        sub_batch: b, examples that it trains on; from 1 to B.
        step_time_s: of one step, as long as it takes without selection; above 0.
        ranks: 1 or above.

    Raises:
        ValueError: a number is out of its range; names it, its value and the limit.
    """

    super_batch: int
    sub_batch: int
    step_time_s: float
    ranks: int = 1

    def __post_init__(self) -> None:
        for name, count in (("super_batch", self.super_batch), ("sub_batch", self.sub_batch), ("ranks", self.ranks)):
            if count < 1:
                raise ValueError(f"{name} is {count}; it must be 1 or above")
        if self.sub_batch > self.super_batch:
            raise ValueError(f"sub_batch is {self.sub_batch}; it is chosen from a super_batch of {self.super_batch}")
        _check_above_zero("step_time_s", self.step_time_s)

    @property
    def candidates_per_step(self) -> int:
        """B × ranks."""
        return self.super_batch * self.ranks


@dataclass(frozen=True)
class Measured:
    """What was measured or is known of the service; None where it is not, and then nothing is made up from it.

    Attributes:
        candidates_per_second: what one scorer scores when it has always something to do; above 0.
        candidate_bytes: of one candidate on the wire.
        learner_bytes: of the learner copy's weights in a scorer, float32; 0 for a score rule that needs none.
        reference_bytes: the same of the reference, or of both where there are two.
        gateway_bytes_per_second: what one gateway receives when it has always something to receive.

    Raises:
        ValueError: a number is out of its range; names it, its value and the limit.
    """

    candidates_per_second: float
    candidate_bytes: int | None = None
    learner_bytes: int | None = None
    reference_bytes: int | None = None
    gateway_bytes_per_second: float | None = None

    def __post_init__(self) -> None:
        _check_above_zero("candidates_per_second", self.candidates_per_second)
        for name, value in (
            ("candidate_bytes", self.candidate_bytes),
            ("gateway_bytes_per_second", self.gateway_bytes_per_second),
        ):
            if value is not None:
                _check_above_zero(name, value)
        for name, count in (("learner_bytes", self.learner_bytes), ("reference_bytes", self.reference_bytes)):
            if count is not None and count < 0:
                raise ValueError(f"{name} is {count}; it must be 0 or above")


@dataclass(frozen=True)
class Sizing:
    """What is needed; None where too little is known.

    Attributes:
        candidates_per_second: that all ranks offer together.
        scorers: how many keep up.
        utilisation: share of their time that these scorers work; at most the target.
        headroom: candidates per second that they could score beyond those that are needed, over those; 0 or above.
        steps_per_second: the largest rate of steps that they sustain, working all the time.
        selection_s: time in which they score what one step of all ranks offers.
        model_bytes: weights in one scorer, for this run: two learner versions and what is frozen.
        bytes_per_second: that all gateways receive together.
        gateways: how many keep up with that.
        super_batch_bytes: of one super-batch on the wire.
        window_bytes: unanswered bytes of one rank, so that it can send while the super-batch before is scored.
    """

    candidates_per_second: float
    scorers: int
    utilisation: float
    headroom: float
    steps_per_second: float
    selection_s: float
    model_bytes: int | None
    bytes_per_second: float | None
    gateways: int | None
    super_batch_bytes: int | None
    window_bytes: int | None


def size(load: TrainerLoad, measured: Measured, target_utilisation: float = TARGET_UTILISATION) -> Sizing:
    """Returns what keeps up with a trainer that never waits for selection.

    Selection overlaps with training, so what a step offers has to be scored within a step:

        needed    = B · ranks / step_time_s                                  [candidates/s]
        scorers   = ⌈needed / (measured · u)⌉
        gateways  = ⌈needed · candidate_bytes / (gateway_bytes_per_second · u)⌉
        models    = 2 · learner_bytes + reference_bytes                      [bytes per scorer]
        window    = 2 · B · candidate_bytes                                  [bytes per rank]

    Args:
        load: the trainer.
        measured: one scorer, one gateway, one candidate.
        target_utilisation: u, the share of their time that scorers and gateways shall work, above 0 and at most 1. What
            is left takes up bursts, the load of weights, and a replica that is lost.

    Raises:
        ValueError: `target_utilisation` is out of its range.
    """
    if not 0 < target_utilisation <= 1:
        raise ValueError(f"target_utilisation is {target_utilisation:g}; it must be above 0 and at most 1")
    needed = load.candidates_per_step / load.step_time_s
    scorers = _replicas(needed, measured.candidates_per_second, target_utilisation)
    capacity = scorers * measured.candidates_per_second
    model_bytes = None
    if measured.learner_bytes is not None and measured.reference_bytes is not None:
        model_bytes = _LEARNER_VERSIONS * measured.learner_bytes + measured.reference_bytes
    super_batch_bytes = bytes_per_second = gateways = None
    if measured.candidate_bytes is not None:
        super_batch_bytes = load.super_batch * measured.candidate_bytes
        bytes_per_second = needed * measured.candidate_bytes
        if measured.gateway_bytes_per_second is not None:
            gateways = _replicas(bytes_per_second, measured.gateway_bytes_per_second, target_utilisation)
    return Sizing(
        candidates_per_second=needed,
        scorers=scorers,
        utilisation=needed / capacity,
        headroom=capacity / needed - 1,
        steps_per_second=capacity / load.candidates_per_step,
        selection_s=load.candidates_per_step / capacity,
        model_bytes=model_bytes,
        bytes_per_second=bytes_per_second,
        gateways=gateways,
        super_batch_bytes=super_batch_bytes,
        window_bytes=None if super_batch_bytes is None else _SUPER_BATCHES_IN_WINDOW * super_batch_bytes,
    )


def _replicas(needed: float, each: float, utilisation: float) -> int:
    # What fits exactly must not become one more by the rounding of a division.
    return math.ceil(needed / (each * utilisation) * (1 - 1e-12))


def _check_above_zero(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value:g}; it must be above 0, and finite")
