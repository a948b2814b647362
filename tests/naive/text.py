"""Losses of captions and sequences with Python loops, padding cut off first, without our modules and tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional


def pair_loss(image: Sequence[float], text: Sequence[float]) -> float:
    """−cosine of two embeddings."""
    product = sum(a * b for a, b in zip(image, text, strict=True))
    return -product / math.sqrt(sum(a * a for a in image)) / math.sqrt(sum(b * b for b in text))


def sequence_loss(logits: Sequence[Sequence[float]], tokens: Sequence[int]) -> float:
    """Mean next-token loss of one sequence without padding; NaN for fewer than two tokens."""
    losses = []
    for position in range(len(tokens) - 1):
        row = logits[position]
        top = max(row)
        losses.append(top + math.log(sum(math.exp(value - top) for value in row)) - row[tokens[position + 1]])
    return sum(losses) / len(losses) if losses else math.nan


def sequence_gradient_norm(logits: Sequence[Sequence[float]], tokens: Sequence[int]) -> float:
    """Mean over targets of the distance between the softmax and the token; NaN for fewer than two tokens."""
    norms = []
    for position in range(len(tokens) - 1):
        powers = [math.exp(value - max(logits[position])) for value in logits[position]]
        chances = [power / sum(powers) for power in powers]
        chances[tokens[position + 1]] -= 1
        norms.append(math.sqrt(sum(chance * chance for chance in chances)))
    return sum(norms) / len(norms) if norms else math.nan


def cut(batch: Mapping[str, Any], row: int) -> list[int]:
    """The tokens of one row whose mask is 1."""
    return [int(i) for i, kept in zip(batch["input_ids"][row], batch["attention_mask"][row], strict=True) if kept]


def dual_encoder_losses(state: Mapping[str, torch.Tensor], batch: Mapping[str, Any]) -> list[float]:
    """Losses of uint8 images `[B, C, H, W]` and their captions under a `dual_encoder` state dict, one at a time."""
    losses = []
    for row, picture in enumerate(batch["image"]):
        tokens = cut(batch, row)
        hidden = torch.tensor(picture).float().unsqueeze(0) / 255
        for name, pooled in (("conv1", True), ("conv2", True), ("conv3", False)):
            hidden = functional.conv2d(hidden, state[f"{name}.weight"], state[f"{name}.bias"], padding=1).clamp(min=0)
            hidden = functional.max_pool2d(hidden, 2) if pooled else hidden
        image = state["image_head.weight"] @ hidden.mean(dim=(-1, -2))[0] + state["image_head.bias"]
        words = torch.zeros(state["text_hidden.bias"].shape)
        for position, token in enumerate(tokens):
            word = state["token_embedding.weight"][token] + state["position_embedding.weight"][position]
            words += functional.gelu(state["text_hidden.weight"] @ word + state["text_hidden.bias"])
        text = state["text_head.weight"] @ (words / max(len(tokens), 1)) + state["text_head.bias"]
        losses.append(pair_loss(image.tolist(), text.tolist()) if tokens else math.nan)
    return losses


def language_losses(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    batch: Mapping[str, Any],
    of_sequence: Callable[[Sequence[Sequence[float]], Sequence[int]], float] = sequence_loss,
) -> list[float]:
    """Losses, or norms, of sequences, each run alone through `logits_of`: tokens `[1, T]` → logits `[1, T, V]`."""
    losses = []
    for row in range(len(batch["input_ids"])):
        tokens = cut(batch, row)
        if len(tokens) < 2:
            losses.append(math.nan)
            continue
        with torch.no_grad():
            losses.append(of_sequence(logits_of(torch.tensor([tokens]))[0].double().tolist(), tokens))
    return losses


def softmax_contrastive(images: list[list[float]], texts: list[list[float]], scale: float) -> float:
    """CLIP's loss by its definition."""
    similar = [[-pair_loss(image, text) * scale for text in texts] for image in images]
    count, total = len(images), 0.0
    for own in range(count):
        by_image = math.log(sum(math.exp(similar[own][other]) for other in range(count)))
        by_text = math.log(sum(math.exp(similar[other][own]) for other in range(count)))
        total += by_image + by_text - 2 * similar[own][own]
    return total / (2 * count)


def sigmoid_contrastive(images: list[list[float]], texts: list[list[float]], scale: float, bias: float) -> float:
    """SigLIP's loss by its definition."""
    total = 0.0
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            logit = -pair_loss(image, text) * scale + bias
            total += math.log(1 + math.exp(-logit if i == j else logit))
    return total / len(images)
