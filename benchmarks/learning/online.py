"""`OnlineModel`: Algorithm 1, line 8, in the trainer: the small model learns what the learner learns, and is pushed.

Everything that knows where the online model lives is in here.
"""

from __future__ import annotations

from typing import Self

from torch import nn

from benchmarks.learning.data.parts import Examples
from benchmarks.learning.settings import Training
from benchmarks.learning.trainee import Trainee
from preceptor import Run
from preceptor_service.reference.objectives import objective_of


class OnlineModel:
    """The small model beside the learner; takes each sub-batch, and is pushed every few updates."""

    def __init__(self, trainee: Trainee, push_every: int) -> None:
        self._trainee = trainee
        self._push_every = push_every
        self._run: Run | None = None

    @classmethod
    def of(cls, settings: Training) -> Self | None:
        """Returns the online model of a run; None where its score rule needs none."""
        selection = settings.selection
        if selection is None or selection.online is None:
            return None
        objective = objective_of(settings.task, settings.contrast)
        # Other initial weights than the learner's.
        trainee = Trainee(
            selection.online, objective, settings.updates, selection.online_learning_rate, settings.seed + 1_000
        )
        return cls(trainee, selection.push_every)

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self._trainee.model

    @property
    def flops(self) -> float:
        """Operations of its updates so far."""
        return self._trainee.flops

    def start(self, run: Run) -> None:
        """Pushes the initial weights; from here on `update` pushes to this run. Blocking."""
        self._run = run
        run.push_weights(self.model.state_dict(), step=0)

    def update(self, batch: Examples, update: int) -> None:
        """Takes one step on the sub-batch, and pushes where it is due. Blocking."""
        self._trainee.update(batch)
        if self._run is not None and update % self._push_every == 0:
            self._run.push_weights(self.model.state_dict(), step=update)
