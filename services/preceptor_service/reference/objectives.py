"""What a reference of each task is trained on, and what it is measured by. Called by `training.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import nn
from torch.nn.functional import normalize

from preceptor_service.columns import ATTENTION_MASK, INPUT_IDS
from preceptor_service.models.contrastive import sigmoid_contrastive_loss, softmax_contrastive_loss
from preceptor_service.reference.dataset import Dataset
from preceptor_service.reference.errors import JobError
from preceptor_service.tasks import task_named
from preceptor_service.tasks.task import input_columns

Features = Mapping[str, torch.Tensor]
_MAX_LOG_SCALE = math.log(100)


class Objective(Protocol):
    """The update loss of a task. Its parameters train beside the model, and are no part of the reference."""

    accuracy_of: str
    """What `hits` counts."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """Returns what else is learnt, by name."""
        ...

    def loss(self, module: nn.Module, features: Features) -> torch.Tensor:
        """Returns the loss of a batch, a scalar."""
        ...

    def hits(self, module: nn.Module, features: Features) -> tuple[int, int]:
        """Returns how often the model is right on a batch, and of how often."""
        ...


class MeanLoss:
    """The mean of the task's own loss per example: what scores is what trains.

    Source: Evans et al., arXiv 2312.05328 (ClassAct): ℓ_act = ℓ_learn.
    """

    def __init__(self, task: str) -> None:
        self._task = task_named(task)
        self._hits = _labels if task == "classification" else _next_tokens
        self.accuracy_of = "labels" if task == "classification" else "next tokens"

    def parameters(self) -> dict[str, nn.Parameter]:
        """Returns nothing."""
        return {}

    def loss(self, module: nn.Module, features: Features) -> torch.Tensor:
        """Returns the mean loss."""
        return self._task.loss(module, features).mean()

    def hits(self, module: nn.Module, features: Features) -> tuple[int, int]:
        """Counts labels, or next tokens, that have the largest logit."""
        return self._hits(module, features)


class Contrastive:
    """CLIP's softmax or SigLIP's sigmoid loss over the pairs of a batch, with the temperature learnt beside.

    Source: Evans et al., arXiv 2312.05328 (ActiveCLIP, ActiveSigLIP).
    """

    accuracy_of = "images whose own caption is the nearest of their batch's"

    def __init__(self, kind: str) -> None:
        is_softmax = kind == "softmax"
        start = {"log_scale": math.log(1 / 0.07)} if is_softmax else {"log_scale": math.log(10), "bias": -10.0}
        self._contrast: Callable[..., torch.Tensor] = (
            softmax_contrastive_loss if is_softmax else sigmoid_contrastive_loss
        )
        self._learnt = {name: nn.Parameter(torch.tensor(value)) for name, value in start.items()}

    def parameters(self) -> dict[str, nn.Parameter]:
        """Returns the log of the inverse temperature, and the sigmoid's bias."""
        return self._learnt

    def loss(self, module: nn.Module, features: Features) -> torch.Tensor:
        """Returns the contrastive loss; the inverse temperature counts up to 100."""
        images, captions = _embeddings(module, features)
        learnt = {name: value.to(images.device) for name, value in self._learnt.items()}
        learnt["log_scale"] = learnt["log_scale"].clamp(max=_MAX_LOG_SCALE)
        return self._contrast(images, captions, **learnt)

    def hits(self, module: nn.Module, features: Features) -> tuple[int, int]:
        """Counts images that are nearest to their own caption."""
        images, captions = _embeddings(module, features)
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
    return Contrastive(contrast) if task == "image_text" else MeanLoss(task)


def refuse_examples_without_loss(task: str, data: Dataset) -> None:
    """Refuses captions of padding alone and sequences in which no token follows another.

    Raises:
        JobError: naming the first one.
    """
    mask = data.columns.get(ATTENTION_MASK)
    if mask is None:
        return
    if task == "image_text":
        has_loss, remedy = mask.any(1), "an image needs a caption of at least one token"
    else:
        has_loss, remedy = (mask[:, 1:] & mask[:, :-1]).any(1), "a sequence needs two tokens after each other"
    if not has_loss.all():
        count, first = int((~has_loss).sum()), int(has_loss.argmin())
        raise JobError(f"{count} of {data.rows} rows have no loss, the first is row {first}; {remedy}: leave them out")


def _labels(module: nn.Module, features: Features) -> tuple[int, int]:
    logits = module(**{column.name: features[column.name] for column in input_columns(module)})
    return int((logits.argmax(1) == features["label"]).sum()), len(logits)


def _next_tokens(module: nn.Module, features: Features) -> tuple[int, int]:
    tokens, mask = features[INPUT_IDS], features[ATTENTION_MASK].bool()
    is_target = mask[:, 1:] & mask[:, :-1]
    guesses = module(input_ids=tokens, attention_mask=features[ATTENTION_MASK])[:, :-1].argmax(2)
    return int((guesses == tokens[:, 1:])[is_target].sum()), int(is_target.sum())


def _embeddings(module: nn.Module, features: Features) -> tuple[torch.Tensor, torch.Tensor]:
    images, captions = module(**{column.name: features[column.name] for column in input_columns(module)})
    return images, captions
