"""How good a learner is, on examples without noise: numbers by name, the first one larger where it is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from benchmarks.learning.data.parts import Examples, rows_of, take
from preceptor_service.tasks import task_named
from preceptor_service.tasks.task import input_columns

_ROWS = 1_000
"""Of one forward pass."""

Measure = Callable[[nn.Module, Examples], dict[str, float]]


def accuracy(model: nn.Module, examples: Examples) -> dict[str, float]:
    """Returns the share of examples whose label has the largest logit, over all and of the worst class."""
    label = examples["label"]
    is_right = torch.cat([_logits(model, batch).argmax(1) for batch in _batches(examples)]) == label
    by_class = [float(is_right[label == number].float().mean()) for number in torch.unique(label)]
    return {"accuracy": float(is_right.float().mean()), "worst_class_accuracy": min(by_class)}


def likelihood(model: nn.Module, examples: Examples) -> dict[str, float]:
    """Returns minus the mean next-token loss, in nats, and the perplexity, which is better where it is smaller."""
    task = task_named("causal_lm")
    loss = float(torch.cat([task.loss(model, batch) for batch in _batches(examples)]).mean())
    return {"log_likelihood": -loss, "perplexity": math.exp(loss)}


MEASURES: Mapping[str, Measure] = {"classification": accuracy, "causal_lm": likelihood}
"""By task."""


def measure(task: str, model: nn.Module, examples: Examples) -> dict[str, float]:
    """Returns a model's qualities."""
    with torch.inference_mode():
        return MEASURES[task](model.eval(), examples)


def _logits(model: nn.Module, batch: Examples) -> torch.Tensor:
    logits: torch.Tensor = model(**{column.name: batch[column.name] for column in input_columns(model)})
    return logits


def _batches(examples: Examples) -> list[Examples]:
    return [take(examples, rows) for rows in torch.split(torch.arange(rows_of(examples)), _ROWS)]
