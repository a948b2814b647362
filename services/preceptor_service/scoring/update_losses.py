"""What each task trains on: the update losses of references and of co-trained online models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from preceptor_service.columns import ATTENTION_MASK
from preceptor_service.models.contrastive import sigmoid_contrastive_loss, softmax_contrastive_loss
from preceptor_service.tasks import task_named
from preceptor_service.tasks.task import input_columns

Features = Mapping[str, torch.Tensor]
_MAX_LOG_SCALE = math.log(100)


class UpdateLoss(Protocol):
    """The update loss of a task. Its parameters train beside the model, and are no part of it."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """Returns what else is learnt, by name."""
        ...

    def loss(self, module: nn.Module, features: Features) -> torch.Tensor:
        """Returns the loss of a batch, a scalar."""
        ...


class MeanLoss:
    """The mean of the task's own loss per example: what scores is what trains.

    Source: Evans et al., arXiv 2312.05328 (ClassAct): ℓ_act = ℓ_learn.
    """

    def __init__(self, task: str) -> None:
        self._task = task_named(task)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Returns nothing."""
        return {}

    def loss(self, module: nn.Module, features: Features) -> torch.Tensor:
        """Returns the mean loss."""
        return self._task.loss(module, features).mean()


class Contrastive:
    """CLIP's softmax or SigLIP's sigmoid loss over the pairs of a batch, with the temperature learnt beside.

    Source: Evans et al., arXiv 2312.05328 (ActiveCLIP, ActiveSigLIP).
    """

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
        images, captions = embeddings(module, features)
        learnt = {name: value.to(images.device) for name, value in self._learnt.items()}
        learnt["log_scale"] = learnt["log_scale"].clamp(max=_MAX_LOG_SCALE)
        return self._contrast(images, captions, **learnt)


def update_loss_of(task: str, contrast: str) -> UpdateLoss:
    """Returns what a model of `task` trains on; `contrast`, `"softmax"` or `"sigmoid"`, counts for image_text alone.

    Raises:
        InvalidRunError: there is no such task.
    """
    task_named(task)
    return Contrastive(contrast) if task == "image_text" else MeanLoss(task)


def has_loss(task: str, columns: Mapping[str, NDArray[np.generic]]) -> NDArray[np.bool_] | None:
    """Tells which rows have a loss, bool `[N]`; None where all do.

    A caption of padding alone has none, nor has a sequence in which no token follows another.
    """
    mask = columns.get(ATTENTION_MASK)
    if mask is None:
        return None
    is_token = mask.astype(bool)
    counted = is_token if task == "image_text" else is_token[:, 1:] & is_token[:, :-1]
    return np.asarray(counted.any(1))


def embeddings(module: nn.Module, features: Features) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what a dual encoder makes of images and of captions, `[N, D]` each, of any length."""
    images, captions = module(**{column.name: features[column.name] for column in input_columns(module)})
    return images, captions
