"""A memory bank as a dictionary and loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from preceptor import MemoryBank, RunSpec
from tests.naive.selection import draw

Id = int | str


@dataclass
class Example:
    """One remembered example."""

    score: float
    learner_version: int
    learner_step: int
    put_by: int
    times_sampled: int = 0


class NaiveBank:
    """What `remember` and `sample` do to a bank, one example after the other."""

    def __init__(self, run: RunSpec, settings: MemoryBank) -> None:
        self.run = run
        self.settings = settings
        self.examples: dict[Id, Example] = {}
        self.operations = 0

    def put(self, ids: Sequence[Id], scores: Sequence[float], learner_version: int, learner_step: int) -> int:
        """Puts a super-batch in and returns how many left to make room."""
        self.operations += 1
        for name, score in zip(ids, scores, strict=True):
            before = self.examples.pop(name, None)
            if math.isfinite(score):
                times = 0 if before is None else before.times_sampled
                self.examples[name] = Example(score, learner_version, learner_step, self.operations, times)
        evicted = 0
        while len(self.examples) > self.settings.capacity:
            first = min(self._by_id(), key=lambda name: (self.examples[name].put_by, self.examples[name].score))
            del self.examples[first]
            evicted += 1
        return evicted

    def sample(self, count: int, step: int, rank: int) -> list[Id] | None:
        """Samples a sub-batch; None where there are too few."""
        bound = self.settings.max_staleness_steps
        names = [
            name
            for name in self._by_id()
            if bound is None
            or self.examples[name].learner_version == 0
            or step - self.examples[name].learner_step <= bound
        ]
        if len(names) < count:
            return None
        self.operations += 1
        scores = [self.examples[name].score for name in names]
        chosen = [names[position] for position in draw(self.run, scores, count, step, rank, domain=1)]
        for name in chosen:
            self.examples[name].times_sampled += 1
            if self.examples[name].times_sampled == self.settings.max_times_sampled:
                del self.examples[name]
        return chosen

    def _by_id(self) -> list[Id]:
        return sorted(self.examples, key=lambda name: name.encode() if isinstance(name, str) else name)
