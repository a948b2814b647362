"""What a reference of each task is trained on, and what it is measured by. Called by `training.py`."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn
from torch.nn.functional import normalize

from preceptor_service.columns import ATTENTION_MASK, INPUT_IDS
from preceptor_service.reference.dataset import Dataset
from preceptor_service.reference.errors import JobError
from preceptor_service.scoring.update_losses import (
    Contrastive,
    Features,
    MeanLoss,
    UpdateLoss,
    embeddings,
    has_loss,
)
from preceptor_service.tasks import task_named
from preceptor_service.tasks.task import input_columns


class Objective(UpdateLoss, Protocol):
    """The update loss of a task, and what tells how well it went."""

    accuracy_of: str
    """What `hits` counts."""

    def hits(self, module: nn.Module, features: Features) -> tuple[int, int]:
        """Returns how often the model is right on a batch, and of how often."""
        ...


class MeasuredMeanLoss(MeanLoss):
    """The mean of the task's loss, measured by what has the largest logit."""

    def __init__(self, task: str) -> None:
        super().__init__(task)
        self._hits = _labels if task == "classification" else _next_tokens
        self.accuracy_of = "labels" if task == "classification" else "next tokens"

    def hits(self, module: nn.Module, features: Features) -> tuple[int, int]:
        """Counts labels, or next tokens, that have the largest logit."""
        return self._hits(module, features)


class MeasuredContrastive(Contrastive):
    """The contrastive loss, measured by which caption is the nearest."""

    accuracy_of = "images whose own caption is the nearest of their batch's"

    def hits(self, module: nn.Module, features: Features) -> tuple[int, int]:
        """Counts images that are nearest to their own caption."""
        images, captions = embeddings(module, features)
        nearest = (normalize(images.float(), dim=1) @ normalize(captions.float(), dim=1).T).argmax(1)
        return int((nearest == torch.arange(len(nearest), device=nearest.device)).sum()), len(nearest)


CONTRASTS = ("softmax", "sigmoid")


def objective_of(task: str, contrast: str) -> Objective:
    """Returns what a reference of `task` is trained on; `contrast` counts for image_text alone.

    Raises:
        JobError: there is no such contrast.
        InvalidRunError: there is no such task.
    """
    task_named(task)
    if contrast not in CONTRASTS:
        raise JobError(f"--contrast is {contrast[:64]!r}; choose one of {', '.join(CONTRASTS)}")
    return MeasuredContrastive(contrast) if task == "image_text" else MeasuredMeanLoss(task)


def refuse_examples_without_loss(task: str, data: Dataset) -> None:
    """Refuses captions of padding alone and sequences in which no token follows another.

    Raises:
        JobError: naming the first one.
    """
    with_loss = has_loss(task, data.columns)
    if with_loss is not None and not with_loss.all():
        remedy = "a sequence needs two tokens after each other"
        if task == "image_text":
            remedy = "an image needs a caption of at least one token"
        count, first = int((~with_loss).sum()), int(with_loss.argmin())
        raise JobError(
            f"{count} of {data.rows} rows have no loss, the first is {data.place(first)}; {remedy}: leave them out"
        )


def _labels(module: nn.Module, features: Features) -> tuple[int, int]:
    logits = module(**{column.name: features[column.name] for column in input_columns(module)})
    return int((logits.argmax(1) == features["label"]).sum()), len(logits)


def _next_tokens(module: nn.Module, features: Features) -> tuple[int, int]:
    tokens, mask = features[INPUT_IDS], features[ATTENTION_MASK].bool()
    is_target = mask[:, 1:] & mask[:, :-1]
    guesses = module(input_ids=tokens, attention_mask=features[ATTENTION_MASK])[:, :-1].argmax(2)
    return int((guesses == tokens[:, 1:])[is_target].sum()), int(is_target.sum())
