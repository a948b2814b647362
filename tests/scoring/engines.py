"""An engine over a store with weights in it, for tests of the engine and the pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from preceptor_service.models import ArchitectureRegistry
from preceptor_service.scoring.engine import ScoringEngine
from preceptor_service.scoring.pool import MicroBatch, ModelRef, ScoringModels
from tests.weight_store.pushing import push, store_with_runs

SMALL = {"in_channels": 1, "image_size": 8, "num_classes": 10, "width": 8}


class Bench:
    """A store, a registry, and an engine on the CPU."""

    def __init__(self, root: Path, model_bytes: int = 1 << 28) -> None:
        self.store = store_with_runs(root, keep_versions=4, max_bytes=1 << 28)
        self.registry = ArchitectureRegistry({"own": "tests.models.architectures:norm_dropout"})
        self.engine = ScoringEngine(self.store, self.registry, device="cpu", threads=1, model_bytes=model_bytes)

    def pushed(self, architecture: str, config: dict[str, Any], state: dict[str, torch.Tensor]) -> ModelRef:
        version = push(self.store, save(state), run_id="run")
        return ModelRef(architecture, json.dumps(config, sort_keys=True), version.digest, version.total_bytes)

    def small_cnn(self, seed: int) -> tuple[ModelRef, dict[str, torch.Tensor]]:
        """A model with weights of its own for each seed."""
        state = self.registry.build("small_cnn", SMALL).state_dict()
        generator = torch.Generator().manual_seed(seed)
        for tensor in state.values():
            tensor.normal_(0, 0.3, generator=generator)
        return self.pushed("small_cnn", SMALL, state), state


def models(learner: ModelRef | None, reference: ModelRef | None, run_id: str = "run") -> ScoringModels:
    return ScoringModels(run_id, "classification", learner, reference)


def digits(seed: int, rows: int = 16, row_count: int | None = None) -> MicroBatch:
    """Images of noise with labels, read-only as they come from the wire."""
    generator = np.random.default_rng(seed)
    columns: dict[str, NDArray[np.generic]] = {
        "image": generator.integers(0, 256, (rows, 1, 8, 8), dtype=np.uint8),
        "label": generator.integers(0, 10, rows),
    }
    for column in columns.values():
        column.flags.writeable = False
    return MicroBatch(columns, rows if row_count is None else row_count)
