"""`RunCounters`: what one gateway did for a run since it started. Written by the gateway, read by the cost meter."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass
class RunCounters:
    """What this gateway answered for a run since it started.

    Attributes:
        candidates, selected: offered and handed out, by `Select` and by the memory bank.
        forward_s, answer_s, co_training_s: seconds of forward passes that scored; from header to answer; of scorers
            that trained what the run co-trains.
        learner_rows, reference_rows: of the forward passes that scored, as in `selected.Stages`: of what was drawn
            unscored there are none.
        reference_losses_found, reference_losses_missing: candidates that the run's table had, and had not.
    """

    last_step: int | None = None
    last_answer_time_s: float | None = None
    super_batches: int = 0
    candidates: int = 0
    selected: int = 0
    fallbacks: int = 0
    control_super_batches: int = 0
    failures: int = 0
    forward_s: float = 0.0
    answer_s: float = 0.0
    co_training_s: float = 0.0
    learner_rows: int = 0
    reference_rows: int = 0
    reference_losses_found: int = 0
    reference_losses_missing: int = 0

    @property
    def has_scored(self) -> bool:
        """Whether anything was scored, or looked up in a table."""
        return self.learner_rows + self.reference_rows + self.reference_losses_found > 0

    def count(self, step: int, candidates: int, selected: int, is_fallback: bool) -> None:
        """Counts one answered super-batch."""
        self.last_answer_time_s = time.time()
        self.last_step = step if self.last_step is None else max(step, self.last_step)
        self.super_batches += 1
        self.candidates += candidates
        self.selected += selected
        self.fallbacks += is_fallback
