"""Learnability with selector top_k is RHO-LOSS's rule, by an implementation that knows nothing of the service."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.learning import identity, report, rho

HALF = torch.tensor([[0.0, 0.0]])


class Table(nn.Module):
    """Gives the logits that it was given."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.logits


def test_the_rule_takes_what_is_not_learnt_and_learnable() -> None:
    # Probabilities of the label: 0.5, 0.25, 0.9 by the model; 0.99, 0.1, 0.9 by the hold-out model.
    model = Table(torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]])).tolist())
    holdout = Table(torch.log(torch.tensor([[0.99, 0.01], [0.1, 0.9], [0.9, 0.1]])).tolist())
    labels = torch.zeros(3, dtype=torch.int64)

    irreducible = rho.irreducible_losses(holdout, HALF, labels)
    assert irreducible.tolist() == pytest.approx([0.01005, 2.30259, 0.10536], abs=1e-4)
    # Reducible: 0.683, -0.916, 0.
    assert rho.selected(model, HALF, labels, irreducible, 2).tolist() == [0, 2]


@pytest.mark.usefixtures("fashion_mnist")
def test_the_service_selects_what_the_rule_selects(tmp_path: Path) -> None:
    found = identity.run(is_smoke=True, work=tmp_path)

    assert found["equal_sets"] == found["equal_orders"] == found["super_batches"] == 3
    assert found["largest_difference"] < 1e-5


def test_the_table_of_the_page_is_the_one_that_was_found() -> None:
    page = report.PAGE.read_text()
    begin, end = report.marked(page, "identity")

    assert page[begin:end].strip() == identity.table(json.loads(identity.FOUND.read_text()))
