"""Small runs: their settings, weights and candidates, and what the naive loop says of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from preceptor import RunSpec
from preceptor_service.models import ArchitectureRegistry
from tests.naive.losses import small_cnn_losses
from tests.naive.selection import select as naive_select

MODEL: dict[str, Any] = {"in_channels": 1, "image_size": 8, "num_classes": 4, "width": 2}
FLOAT_MODEL: dict[str, Any] = {**MODEL, "input_dtype": "float32"}

State = dict[str, torch.Tensor]


def spec(run_id: str, **settings: Any) -> RunSpec:
    return RunSpec(**{"run_id": run_id, "model": "small_cnn", "model_config": MODEL, **settings})


def gated_spec(run_id: str, **settings: Any) -> RunSpec:
    """A run whose forward passes wait at the gate that bears its name."""
    return spec(run_id, **{"model": "gated", "model_config": {"gate": run_id}, "score": "hard_learner", **settings})


def weights(seed: int, model: dict[str, Any] = MODEL, scale: float = 3.0) -> State:
    """A state dict that depends on `seed` alone; `scale` spreads the losses."""
    generator = torch.Generator().manual_seed(seed)
    outline = ArchitectureRegistry().outline("small_cnn", model).state_dict()
    return {name: torch.randn(tensor.shape, generator=generator) * scale / 4 for name, tensor in outline.items()}


def gated_weights(seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "head.weight": torch.randn(4, 2, generator=generator),
        "head.bias": torch.randn(4, generator=generator),
    }


def candidates(seed: int, rows: int = 32) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (rows, 1, 8, 8), dtype=np.uint8),
        "label": rng.integers(0, 4, rows, dtype=np.int64),
    }


def float_candidates(seed: int, rows: int = 32) -> dict[str, Any]:
    batch = candidates(seed, rows)
    return {**batch, "image": (batch["image"] / 255).astype(np.float32)}


def gated_candidates(seed: int, rows: int = 8) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.standard_normal((rows, 2)).astype(np.float32),
        "label": rng.integers(0, 4, rows, dtype=np.int64),
    }


def losses(state: State, batch: dict[str, Any]) -> list[float]:
    return small_cnn_losses(state, batch["image"], batch["label"])


def expected(
    run: RunSpec, batch: dict[str, Any], learner: State, reference: State, count: int, step: int, rank: int = 0
) -> list[int]:
    """Indices by the naive loop."""
    return naive_select(
        run,
        learner_losses=losses(learner, batch),
        reference_losses=losses(reference, batch),
        count=count,
        step=step,
        rank=rank,
    )


def as_uniform(run: RunSpec, rows: int, count: int, step: int) -> list[int]:
    """Indices that the uniform selector draws, by the naive loop."""
    nothing = [0.0] * rows
    uniform = RunSpec(run.run_id, model=run.model, seed=run.seed, score="uniform", selector="uniform")
    return naive_select(uniform, learner_losses=nothing, reference_losses=nothing, count=count, step=step)
