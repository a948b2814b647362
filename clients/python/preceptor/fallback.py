"""`Fallback`: the uniform draw that a trainer makes by itself where no gateway answers. Called by `stream.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from preceptor.answers import Selection, Timings
from preceptor.in_flight import Offer
from preceptor.randomness import uniforms
from preceptor.runs import RunSpec

_WAY_S = 2.0
_NO_TIME = Timings(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)


@dataclass(frozen=True)
class Fallback:
    """Draws for a run whose trainer would rather have any sub-batch than wait.

    A gateway that lives answers such a run by its deadline, if need be uniformly. So nobody is there when for that
    long, and 2 s for the way there and back, nothing was heard of one, and no piece of a body taken.
    """

    spec: RunSpec

    @classmethod
    def of(cls, spec: RunSpec) -> Fallback | None:
        """Returns that of a run; None where it is not to fall back, or co-trained: that needs each step answered."""
        return cls(spec) if spec.on_deadline == "uniform" and spec.co_training is None else None

    def patience_s(self, is_alone: bool) -> float:
        """Returns how long that may be; where nobody answered the last time either, the deadline alone."""
        if self.spec.deadline_s is None:
            return math.inf  # the service's, which the client does not know
        return self.spec.deadline_s + (0.0 if is_alone else _WAY_S)

    def drawn(self, offer: Offer) -> Selection | None:
        """Returns the very draw that a gateway would fall back to; None where so many cannot be drawn."""
        rows, (step, rank) = offer.batch.row_count, offer.key
        if not 1 <= offer.sub_batch_size <= rows:
            return None
        noise = uniforms(self.spec.seed, self.spec.run_id, step, rank, rows)
        is_weighted = self.spec.selector == "proportional"
        return Selection(
            step=step,
            rank=rank,
            indices=np.argsort(-noise, kind="stable")[: offer.sub_batch_size],
            scores=np.empty(0, np.float32),
            learner_version=None,
            learner_step=None,
            staleness_steps=None,
            is_fallback=True,
            non_finite_count=0,
            timings=_NO_TIME,
            weights=np.ones(offer.sub_batch_size, np.float32) if is_weighted else None,
        )
