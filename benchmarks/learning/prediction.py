"""What the cost meter's model predicts for an arm, to be held against what was counted."""

from __future__ import annotations

from functools import lru_cache

import torch

from benchmarks.learning.settings import COMPOSER, Model, Training
from benchmarks.learning.trainee import REGISTRY
from preceptor.torch import forward_flops
from preceptor_service.cost import break_even_savings, relative_compute
from preceptor_service.tasks.task import input_columns


def compute_ratio(settings: Training, savings: float) -> float:
    """Returns the compute of an arm over the uniform one's, as `preceptor_service.cost.relative_compute` has it.

    Args:
        settings: of the arm at the full budget.
        savings: share of updates that it saves.
    """
    return relative_compute(savings, **_shares(settings))


def break_even(settings: Training) -> float:
    """Returns the share of updates that the arm must save to pay, as `preceptor_service.cost.break_even_savings`."""
    return break_even_savings(**_shares(settings))


def online_share(settings: Training) -> float:
    """Returns the operations of the online model's forward pass over the learner's.

    Raises:
        ValueError: the arm has no online model.
    """
    if settings.selection is None or settings.selection.online is None:
        raise ValueError("no online model scores here")
    return _flops(settings.selection.online) / _flops(settings.learner)


def _shares(settings: Training) -> dict[str, float]:
    selection = settings.selection
    if selection is None:
        raise ValueError("the control costs what it costs; give an arm that selects")
    reference = selection.reference
    is_learner = selection.selector == COMPOSER
    return {
        "f_online": float(is_learner) if selection.online is None else online_share(settings),
        "charge_online_training": 0.0 if is_learner else 1.0,
        "f_reference": 0.0 if reference is None else _flops(reference.model) / _flops(settings.learner),
        "ratio": float(selection.ratio),
        # What it was trained on, over what the uniform run was trained on; the paper's figure has 1.
        "charge_reference_training": 0.0 if reference is None else reference.updates / settings.updates,
        "charge_reference_scoring": 0.0 if reference is None or reference.is_table else 1.0,
    }


def _flops(model: Model) -> float:
    return _forward_flops(model.architecture, tuple(sorted(model.config.items())))


@lru_cache
def _forward_flops(architecture: str, config: tuple[tuple[str, object], ...]) -> float:
    module = REGISTRY.build(architecture, dict(config))
    types = {"uint8": torch.uint8, "int64": torch.int64, "float": torch.float32}
    inputs = (torch.ones(1, *column.shape, dtype=types[column.element_type]) for column in input_columns(module))
    return forward_flops(module, *inputs)
