"""What runs are charged is what they cost, worked out here by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.learning.cost import CpuClock
from benchmarks.learning.experiments import EXPERIMENTS
from benchmarks.learning.settings import Training
from benchmarks.learning.training import train

pytestmark = pytest.mark.usefixtures("fashion_mnist")

PIXELS = 28 * 28
COSTS = (
    "learner", "loop", "online_training", "online_scoring", "reference_training", "reference_table",
)  # fmt: skip


def forward(width: int) -> float:
    """Operations of one image: outputs × inputs of each × 2, for three convolutions and the linear layer."""
    layers = [(14 * 14 * width, 16), (49 * 2 * width, 9 * width), (49 * 4 * width, 9 * 2 * width), (10, 49 * 4 * width)]
    return float(sum(2 * outputs * inputs for outputs, inputs in layers))


def update(width: int) -> float:
    """Operations of one image's part in an update: backward is twice forward, but images need no gradient."""
    return 3 * forward(width) - 2 * 14 * 14 * width * 16


@pytest.fixture(scope="module")
def runs(fashion_mnist: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Training, dict[str, Any]]]:
    experiment = EXPERIMENTS["noisy-labels"].smoke()
    work = tmp_path_factory.mktemp("work")
    settings = {arm: experiment.training(arm, 1.0, 0) for arm in experiment.arms}
    return {arm: (each, train(each, work)) for arm, each in settings.items()}


def test_the_control_is_charged_its_updates_and_nothing_else(runs: dict[str, Any]) -> None:
    settings, outcome = runs["uniform"]

    assert set(outcome["costs"]) == {"learner", "loop"}
    assert outcome["costs"]["learner"]["flops"] == update(32) * settings.sub_batch_size * settings.updates
    assert outcome["costs"]["loop"]["cpu_s"] > 0


def test_a_selected_run_is_charged_everything(runs: dict[str, Any]) -> None:
    settings, outcome = runs["learnability"]
    flops = {name: cost["flops"] for name, cost in outcome["costs"].items()}
    trained = settings.sub_batch_size * settings.updates

    assert tuple(flops) == COSTS
    assert flops == {
        "learner": update(32) * trained,
        "loop": 0,
        "online_training": update(8) * trained,
        "online_scoring": forward(8) * trained * 5,
        "reference_training": update(8) * settings.sub_batch_size * 4,
        "reference_table": forward(8) * 400,
    }
    assert all(outcome["costs"][name]["cpu_s"] > 0 for name in ("loop", "reference_training", "reference_table"))


def test_the_same_settings_train_the_same_learner(runs: dict[str, Any], tmp_path: Path) -> None:
    settings, outcome = runs["learnability"]
    again = train(settings, tmp_path)

    assert again["curve"] == outcome["curve"]
    assert again["quality"] == outcome["quality"]
    assert again["noise_share"] == outcome["noise_share"]


def test_the_clock_counts_this_process_and_leaves_out_what_it_is_told_to() -> None:
    clock, counted = CpuClock(), CpuClock()
    with clock.left_out():
        a = torch.rand(400, 400)
        for _ in range(20):
            a = (a @ a).sin()

    assert counted.cpu_s > 0
    assert clock.cpu_s < counted.cpu_s
