"""Algorithm 1 as one plain loop: score, draw, and train the small model on what was drawn. No service, no journal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn import functional

from preceptor import CoTraining, RunSpec
from tests.naive.losses import small_cnn_losses
from tests.naive.selection import select

State = dict[str, torch.Tensor]


@dataclass
class Story:
    """What happened: indices by (step, rank), the weights after each block, and which of them scored each step.

    `references` are the reference's weights after each block, where it is trained too.
    """

    indices: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    weights: list[State] = field(default_factory=list)
    references: list[State] = field(default_factory=list)
    scored_under: dict[int, int] = field(default_factory=dict)


def co_train(
    run: RunSpec,
    initial: Mapping[str, torch.Tensor],
    reference: Mapping[str, torch.Tensor],
    candidates: Callable[[int, int], dict[str, Any]],
    count: int,
    steps: int,
) -> Story:
    """Selects `count` of `candidates(step, rank)` at each of so many steps, and trains a `small_cnn` on them.

    Where `reference_examples` are asked for, the reference begins as `reference` and trains on uniform draws.
    """
    how = run.co_training
    assert how is not None
    online, teacher = _Trainee(how, initial), _Trainee(how, reference)
    story = Story(weights=[_copy(initial)], references=[_copy(reference)])
    for step in range(how.first_step, how.first_step + steps):
        in_block, block = (step - how.first_step) % how.publish_every, (step - how.first_step) // how.publish_every
        story.scored_under[step] = max(0, block - how.lag)
        scoring = story.weights[story.scored_under[step]]
        judging = story.references[story.scored_under[step] if how.reference_examples else 0]
        taught: list[tuple[torch.Tensor, torch.Tensor]] = []
        shown: list[tuple[torch.Tensor, torch.Tensor]] = []
        for rank in range(how.ranks):
            batch = candidates(step, rank)
            drawn = select(
                run,
                learner_losses=small_cnn_losses(scoring, batch["image"], batch["label"]),
                reference_losses=small_cnn_losses(judging, batch["image"], batch["label"]),
                count=count,
                step=step,
                rank=rank,
            )
            story.indices[step, rank] = drawn
            taught.append(_taken(batch, drawn))
            if how.reference_examples:
                rows = len(batch["label"])
                stream = replace(run, run_id=f"{run.run_id}/reference", score="uniform", selector="uniform")
                nothing, examples = [0.0] * rows, min(rows, how.reference_examples)
                any_of_them = select(
                    stream, learner_losses=nothing, reference_losses=nothing, count=examples, step=step, rank=rank
                )
                shown.append(_taken(batch, any_of_them))
        learning_rate = _learning_rate(how, step - how.first_step)
        online.update(taught, learning_rate)
        if shown:
            teacher.update(shown, learning_rate)
        if in_block == how.publish_every - 1:
            story.weights.append(_copy(online.state))
            story.references.append(_copy(teacher.state))
    return story


class _Trainee:
    def __init__(self, how: CoTraining, initial: Mapping[str, torch.Tensor]) -> None:
        self.state = {name: tensor.clone().requires_grad_() for name, tensor in initial.items()}
        self._optimiser = _optimiser(how, list(self.state.values()))

    def update(self, parts: list[tuple[torch.Tensor, torch.Tensor]], learning_rate: float) -> None:
        images, labels = zip(*parts, strict=True)
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        self._optimiser.zero_grad()
        torch.autograd.backward(_mean_loss(self.state, torch.cat(images), torch.cat(labels)))
        self._optimiser.step()


def _taken(batch: dict[str, Any], drawn: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(batch["image"])[drawn], torch.tensor(batch["label"])[drawn]


def _mean_loss(state: Mapping[str, torch.Tensor], images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    hidden = images.float() / 255
    for number in (1, 2, 3):
        hidden = functional.conv2d(hidden, state[f"conv{number}.weight"], state[f"conv{number}.bias"], padding=1)
        hidden = hidden.relu()
        if number < 3:
            hidden = functional.max_pool2d(hidden, 2)
    logits = functional.linear(hidden.mean((2, 3)), state["head.weight"], state["head.bias"])
    return functional.cross_entropy(logits, labels)


def _optimiser(how: CoTraining, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    if how.optimiser == "sgd":
        return torch.optim.SGD(parameters, momentum=how.momentum, weight_decay=how.weight_decay)
    return torch.optim.AdamW(parameters, betas=(how.beta1, how.beta2), weight_decay=how.weight_decay)


def _learning_rate(how: CoTraining, update: int) -> float:
    if update < how.warm_up_steps:
        return how.learning_rate * (update + 1) / how.warm_up_steps
    if how.total_steps is None:
        return how.learning_rate
    passed = min(update, how.total_steps) - how.warm_up_steps
    share = passed / (how.total_steps - how.warm_up_steps)
    return how.learning_rate * (1 + math.cos(math.pi * share)) / 2 if share < 1 else 0.0


def _copy(state: Mapping[str, torch.Tensor]) -> State:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
