"""An arm that Composer selects for, with a stand-in for its function: the real one needs an environment of its own."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.learning import __main__ as command
from benchmarks.learning.experiments import EXPERIMENTS
from benchmarks.learning.training import train
from tests.learning.test_costs import forward, update

KEPT = [5, 2, 9]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Composer's function was given; it keeps three examples."""
    found: list[dict[str, Any]] = []

    def select_using_loss(
        inputs: torch.Tensor, targets: torch.Tensor, model: Any, loss: Any, keep: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            losses = loss(model(inputs), targets, reduction="none")
        found.append({"rows": len(inputs), "losses": losses, "keep": keep})
        return inputs[KEPT], targets[KEPT]

    package, module = ModuleType("composer.algorithms"), ModuleType("composer.algorithms.selective_backprop")
    module.select_using_loss = select_using_loss  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "composer", ModuleType("composer"))
    monkeypatch.setitem(sys.modules, "composer.algorithms", package)
    monkeypatch.setitem(sys.modules, "composer.algorithms.selective_backprop", module)
    return found


@pytest.mark.usefixtures("fashion_mnist")
def test_the_learner_is_run_over_all_candidates_and_trained_on_what_is_kept(
    asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    settings = EXPERIMENTS["composer-noisy"].smoke().training("Composer", 1.0, 0)
    candidates = 5 * settings.sub_batch_size

    outcome = train(settings, tmp_path)

    assert [(each["rows"], each["keep"], each["losses"].shape) for each in asked] == [
        (candidates, 0.2, (candidates,))
    ] * settings.updates
    flops = {name: cost["flops"] for name, cost in outcome["costs"].items()}
    assert flops == {
        "learner": update(32) * len(KEPT) * settings.updates,
        "loop": 0,
        "learner_scoring": forward(32) * candidates * settings.updates,
    }


def test_it_says_what_it_lacks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = replace(EXPERIMENTS["composer-noisy"], package="no_such_package")
    monkeypatch.setitem(EXPERIMENTS, "composer-noisy", lacking)

    assert command.main(["composer-noisy", "--smoke"]) == 1
    assert "composer-noisy needs the package no_such_package" in capsys.readouterr().out
