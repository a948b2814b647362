"""What is measured is what its name says, on a model whose answers are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.learning.data import scenes
from benchmarks.learning.measures import measure
from benchmarks.learning.models import strided_dual_encoder


class Knowing(nn.Module):
    """Knows what pair a scene shows, from its first pixel, but takes some pairs for their neighbours."""

    def __init__(self, mistaken: int) -> None:
        super().__init__()
        outline = strided_dual_encoder(width=1, vocab_size=scenes.VOCABULARY, context_length=scenes.CONTEXT)
        self.input_columns = outline.input_columns
        self.mistaken = mistaken

    def forward(
        self, image: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pair = image[:, 0, 0, 0].long()
        seen = torch.where(pair < self.mistaken, pair ^ 1, pair)
        return 3 * torch.eye(scenes.PAIRS)[seen], torch.eye(scenes.PAIRS)[torch.arange(len(input_ids)) % scenes.PAIRS]


@pytest.mark.parametrize(("mistaken", "right"), [(0, 1.0), (40, 0.6), (100, 0.0)])
def test_a_scene_counts_where_the_caption_of_its_pair_is_nearest_and_a_caption_where_its_scene_is(
    mistaken: int, right: float
) -> None:
    pair = torch.arange(scenes.PAIRS).repeat(3)[: 2 * scenes.PAIRS + 7]
    shown = {
        "image": pair.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 28, 28),
        "input_ids": torch.zeros(len(pair), scenes.CONTEXT, dtype=torch.int64),
        "attention_mask": torch.ones(len(pair), scenes.CONTEXT, dtype=torch.int64),
        scenes.PAIR: pair,
    }

    found = measure("image_text", Knowing(mistaken), shown)

    wrong = (pair < mistaken).float().mean()
    assert found["zero_shot_accuracy"] == pytest.approx(1 - float(wrong))
    assert found["recall_at_1"] == pytest.approx(right)
