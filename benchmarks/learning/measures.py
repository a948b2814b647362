"""How good a learner is, on examples without noise: numbers by name, the first one larger where it is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize

from benchmarks.learning.data.parts import Examples, rows_of, take
from benchmarks.learning.data.scenes import PAIR, PAIRS, captions
from preceptor_service.scoring.update_losses import embeddings
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


def zero_shot(model: nn.Module, examples: Examples) -> dict[str, float]:
    """Returns how often a scene is nearest to the caption of its own two garments, among the captions of all pairs.

    `recall_at_1` turns it round: how often a caption's nearest scene, of one scene of each pair, has its garments; mean
    over as many such galleries as there are scenes of the rarest pair.
    """
    pairs = examples[PAIR]
    prompts = captions(np.arange(PAIRS), np.zeros(PAIRS, np.int64))
    told = {**prompts, "image": examples["image"][:1].expand(PAIRS, *examples["image"].shape[1:])}
    wanted = embeddings(model, told)[1]
    scenes = torch.cat([embeddings(model, batch)[0] for batch in _batches(examples)])
    likeness = normalize(scenes, dim=1) @ normalize(wanted, dim=1).T
    return {
        "zero_shot_accuracy": float((likeness.argmax(1) == pairs).float().mean()),
        "recall_at_1": _recall(likeness, pairs),
    }


def _recall(likeness: torch.Tensor, pairs: torch.Tensor) -> float:
    """Returns the share of captions, `[scenes, captions]` by columns, whose nearest scene of a gallery is of theirs."""
    there = torch.unique(pairs)
    scenes_of = [torch.nonzero(pairs == pair).flatten() for pair in there]
    galleries = [torch.stack(scenes) for scenes in zip(*scenes_of, strict=False)]
    hits = [likeness[gallery][:, there].argmax(0) == torch.arange(len(there)) for gallery in galleries]
    return float(torch.cat(hits).float().mean())


MEASURES: Mapping[str, Measure] = {"classification": accuracy, "causal_lm": likelihood, "image_text": zero_shot}
"""By task."""

SHARES = frozenset({"accuracy", "worst_class_accuracy", "zero_shot_accuracy", "recall_at_1"})
"""Qualities that are shares, from 0 to 1."""


def measure(task: str, model: nn.Module, examples: Examples) -> dict[str, float]:
    """Returns a model's qualities."""
    with torch.inference_mode():
        return MEASURES[task](model.eval(), examples)


def _logits(model: nn.Module, batch: Examples) -> torch.Tensor:
    logits: torch.Tensor = model(**{column.name: batch[column.name] for column in input_columns(model)})
    return logits


def _batches(examples: Examples) -> list[Examples]:
    return [take(examples, rows) for rows in torch.split(torch.arange(rows_of(examples)), _ROWS)]
