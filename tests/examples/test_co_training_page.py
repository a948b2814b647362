"""The example of the page about co-training does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from preceptor import CoTraining, RunSpec, SelectionClient
from preceptor.torch import SelectingLoader
from preceptor_service.app import start_service
from preceptor_service.config import parse_config
from preceptor_service.models import ArchitectureRegistry


def test_the_example_trains_and_pushes_no_learner(repository: Path, tmp_path: Path) -> None:
    page = (repository / "docs" / "co-training.md").read_text()
    example = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert example is not None
    config = {"in_channels": 1, "image_size": 8, "num_classes": 4, "width": 4}
    learner, reference = (ArchitectureRegistry().build("small_cnn", config) for _ in range(2))
    optimiser = torch.optim.AdamW(learner.parameters())
    trained_on = []

    def update(model: torch.nn.Module, of: torch.optim.Optimizer, image: torch.Tensor, label: torch.Tensor) -> None:
        of.zero_grad()
        torch.autograd.backward(cross_entropy(model(image), label))
        of.step()
        trained_on.append(len(label))

    generator = torch.Generator().manual_seed(0)
    super_batches = [
        (
            torch.randint(256, (96, 1, 8, 8), dtype=torch.uint8, generator=generator),
            torch.randint(4, (96,), generator=generator),
        )
        for _ in range(24)
    ]
    settings = {
        "pool": "in-process",
        "gateway": {"host": "127.0.0.1", "port": 0},
        "metrics": {"enabled": False},
        "weights": {"path": str(tmp_path)},
    }
    service = start_service(parse_config(settings))
    try:
        with SelectionClient(f"127.0.0.1:{service.ports.grpc}") as client:
            names = {
                "CoTraining": CoTraining, "RunSpec": RunSpec, "SelectingLoader": SelectingLoader, "client": client,
                "config": config, "reference": reference, "super_batches": super_batches, "update": update,
                "learner": learner, "optimiser": optimiser,
            }  # fmt: skip
            exec(compile(example[1], "docs/co-training.md", "exec"), names)
            status = client.get_run("pupil").status()
    finally:
        service.stop()
    assert trained_on == [64] * 24
    # The last of three blocks was scored under what the first had taught; the others may still be under training.
    assert status.learner_version in (2, 3, 4)
