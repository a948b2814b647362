"""Candidates, weights and the naive answer that every service must give."""

from __future__ import annotations

import zlib
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from preceptor import RunSpec, SelectionClient
from preceptor.client import Run
from preceptor_service.models import ArchitectureRegistry
from tests.naive.losses import small_cnn_gradient_norms, small_cnn_losses
from tests.naive.selection import select

SETTINGS = {"in_channels": 1, "image_size": 8, "num_classes": 10, "width": 6}
ROWS, COUNT = 300, 40


@cache
def state(name: str) -> dict[str, torch.Tensor]:
    """The weights called `name`: "learner-1", "reference", … each different."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    module = ArchitectureRegistry().build("small_cnn", SETTINGS)
    return {key: torch.randn(value.shape, generator=generator) * 0.3 for key, value in module.state_dict().items()}


DISTINCT = 12
"""Different super-batches; step s offers number s % DISTINCT."""


@cache
def _candidates(number: int) -> dict[str, NDArray[np.generic]]:
    random = np.random.default_rng(number)
    return {
        "image": random.integers(0, 256, (ROWS, 1, 8, 8), dtype=np.uint8),
        "label": random.integers(0, 10, ROWS),
    }


def super_batch(step: int) -> dict[str, NDArray[np.generic]]:
    """The candidates of `step`."""
    return _candidates(step % DISTINCT)


@cache
def _losses(name: str, number: int) -> list[float]:
    candidates = _candidates(number)
    return small_cnn_losses(state(name), candidates["image"].astype(np.uint8), candidates["label"].astype(np.int64))


@cache
def _gradient_norms(name: str, number: int) -> list[float]:
    candidates = _candidates(number)
    images, labels = candidates["image"].astype(np.uint8), candidates["label"].astype(np.int64)
    return small_cnn_gradient_norms(state(name), images, labels)


def expected(
    spec: RunSpec, step: int, learner: str = "learner-1", rank: int = 0, super_batch_of: int | None = None
) -> list[int]:
    """The naive answer to `super_batch(step)`, or to that of `super_batch_of`."""
    number = (step if super_batch_of is None else super_batch_of) % DISTINCT
    return select(
        spec,
        learner_losses=_losses(learner, number),
        reference_losses=_losses("reference", number),
        count=COUNT,
        step=step,
        rank=rank,
        gradient_norms=_gradient_norms(learner, number) if spec.score == "gradient_norm" else (),
    )


def spec(run_id: str, **settings: object) -> RunSpec:
    """A run of the small model."""
    fixed = {"run_id": run_id, "model": "small_cnn", "model_config": SETTINGS, "seed": 11, "deadline_s": 100}
    return RunSpec(**{**fixed, **settings})  # type: ignore[arg-type]


def ready_run(client: SelectionClient, settings: RunSpec) -> Run:
    """Creates a run with its weights pushed."""
    run = client.create_run(settings)
    run.push_reference(state("reference"))
    run.push_weights(state("learner-1"), step=0)
    return run
