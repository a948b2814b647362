"""Co-trained runs of the small model: their settings, what they are offered, and the plain loop's word on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from preceptor import CoTraining, Run, RunSpec, Selection
from preceptor_service.config import WeightsConfig
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.weight_store import WeightStore
from tests.naive.co_training import Story, co_train
from tests.service import digits
from tests.service.conftest import wait_until

COUNT = 8
REFERENCE = digits.weights(2)


def spec(run_id: str, co_training: CoTraining | None = None, **settings: Any) -> RunSpec:
    return digits.spec(run_id, co_training=co_training or CoTraining(learning_rate=0.01), **settings)


def offered(step: int, rank: int = 0) -> dict[str, Any]:
    """What a trainer offers at a step."""
    return digits.candidates(1000 * rank + step)


def initial(run: RunSpec) -> dict[str, torch.Tensor]:
    assert run.co_training is not None
    model = ArchitectureRegistry().build(run.model, run.model_config, run.co_training.seed)
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def naive(run: RunSpec, steps: int) -> Story:
    """What the plain loop does with the same run."""
    assert run.co_training is not None
    reference = initial(run) if run.co_training.reference_examples else REFERENCE
    return co_train(run, initial(run), reference, offered, COUNT, steps)


def select(run: Run, step: int, rank: int = 0, timeout_s: float | None = None) -> Selection:
    return run.select(offered(step, rank), COUNT, step=step, rank=rank, timeout_s=timeout_s)


def weights_of(store: Path, run_id: str, version: int, of: str = "digest") -> dict[str, torch.Tensor]:
    """The weights of a version, once it is committed; `of` says of which model."""
    weights = WeightStore.open(WeightsConfig(path=store))

    def is_there() -> bool:
        head = weights.head(run_id, "learner")
        return head is not None and head.version >= version

    wait_until(is_there, f"version {version} was committed")
    return load_file(weights.verify(getattr(weights.version(run_id, "learner", version), of)))


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    """Whether every bit is the same."""
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
