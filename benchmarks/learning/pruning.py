"""Sub-batches as MosaicML's Composer selects them: `select_using_loss`, the learner's own losses, no service."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.learning.data import Parts
from benchmarks.learning.data.parts import Examples, rows_of, take
from benchmarks.learning.settings import Training
from benchmarks.learning.trainee import order


def pruned(settings: Training, parts: Parts, learner: nn.Module) -> Iterator[Examples]:
    """Yields sub-batches of b of the same super-batches as selected arms are offered.

    The paper "Accelerating Deep Learning by Focusing on the Biggest Losers" (Jiang et al. 2019) runs the learner over
    all candidates and keeps one the more likely, the higher its loss.

    Raises:
        ModuleNotFoundError: Composer is not installed.
    """
    from composer.algorithms.selective_backprop import (  # type: ignore[import-not-found]
        select_using_loss,
    )

    selection = settings.selection
    if selection is None or settings.task != "classification":
        raise ValueError("Composer's rule selects for a classification; give a run that selects")
    size = selection.ratio * settings.sub_batch_size
    torch.manual_seed(settings.seed)
    for rows in order(rows_of(parts.pool), size, settings.updates, settings.seed):
        candidates = take(parts.pool, rows)
        label = candidates["label"]

        def losses(
            logits: torch.Tensor, places: torch.Tensor, reduction: str, label: torch.Tensor = label
        ) -> torch.Tensor:
            return cross_entropy(logits, label[places], reduction=reduction)

        # Composer gives inputs and targets back, not which they were: places go in as targets.
        places = torch.arange(len(rows))
        _, kept = select_using_loss(candidates["image"], places, learner, losses, keep=1 / selection.ratio)
        yield take(candidates, kept)
