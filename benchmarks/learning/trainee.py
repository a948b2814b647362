"""`Trainee`: a model under training, as every arm, online model and reference is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.learning.data.parts import Examples, rows_of
from benchmarks.learning.models import ARCHITECTURES
from benchmarks.learning.settings import Model
from preceptor.torch import forward_flops
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.reference.objectives import Objective
from preceptor_service.tasks.task import input_columns

REGISTRY = ArchitectureRegistry(ARCHITECTURES)


class Trainee:
    """A model, its AdamW, and a learning rate that a half cosine takes to 0 over `updates`.

    Args:
        model: which; its initial weights come from `seed`.
        objective: what it is trained on.
        updates: how many there will be.
        learning_rate: at the start.
        seed: of the initial weights.
    """

    def __init__(self, model: Model, objective: Objective, updates: int, learning_rate: float, seed: int) -> None:
        self.model = REGISTRY.build(model.architecture, model.config, seed)
        self._objective = objective
        learnt = [*self.model.parameters(), *objective.parameters().values()]
        self._optimiser = torch.optim.AdamW(learnt, lr=learning_rate)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimiser, updates)
        self._flops_per_example = 0.0
        self.flops = 0.0

    def update(self, batch: Examples) -> None:
        """Takes one step on a batch, and counts its operations: those of an example are counted at the first one."""
        if self._flops_per_example:
            self._step(batch)
        else:
            with FlopCounterMode(display=False) as counter:
                self._step(batch)
            self._flops_per_example = counter.get_total_flops() / rows_of(batch)
        self.flops += self._flops_per_example * rows_of(batch)

    def _step(self, batch: Examples) -> None:
        self._optimiser.zero_grad()
        self._objective.loss(self.model, batch).backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        self._schedule.step()


def flops_of_forward(model: nn.Module, examples: Mapping[str, torch.Tensor]) -> float:
    """Returns the operations of one forward pass of one example."""
    return forward_flops(model, *(examples[column.name][:1] for column in input_columns(model)))


def order(rows: int, size: int, count: int, seed: int) -> Iterator[torch.Tensor]:
    """Yields `count` batches of `size` positions below `rows`: one shuffled epoch after the other, without a gap."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.int64)
    for _ in range(count):
        while len(left) < size:
            left = torch.cat([left, torch.randperm(rows, generator=generator)])
        batch, left = left[:size], left[size:]
        yield batch
