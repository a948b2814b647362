"""The losses of dual-encoder learners against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from preceptor_service.models.contrastive import sigmoid_contrastive_loss, softmax_contrastive_loss
from tests.naive.text import sigmoid_contrastive, softmax_contrastive


@pytest.fixture
def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    images, texts = (torch.randn(5, 4, generator=generator, requires_grad=True) for _ in range(2))
    return images, texts


def test_the_softmax_loss_is_that_of_clip(embeddings: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, texts = embeddings
    log_scale = torch.tensor(math.log(1 / 0.07), requires_grad=True)

    loss = softmax_contrastive_loss(images, texts, log_scale)
    loss.backward()  # type: ignore[no-untyped-call]

    assert loss.item() == pytest.approx(softmax_contrastive(images.tolist(), texts.tolist(), 1 / 0.07), rel=1e-6)
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in (images, texts, log_scale))


def test_the_sigmoid_loss_is_that_of_siglip(embeddings: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, texts = embeddings
    log_scale, bias = torch.tensor(math.log(10), requires_grad=True), torch.tensor(-10.0, requires_grad=True)

    loss = sigmoid_contrastive_loss(images, texts, log_scale, bias)
    loss.backward()  # type: ignore[no-untyped-call]

    assert loss.item() == pytest.approx(sigmoid_contrastive(images.tolist(), texts.tolist(), 10, -10), rel=1e-6)
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in (images, texts, log_scale, bias))


def test_the_length_of_an_embedding_does_not_matter(embeddings: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, texts = (tensor.detach() for tensor in embeddings)

    assert softmax_contrastive_loss(images * 7, texts, 1.0).item() == pytest.approx(
        softmax_contrastive_loss(images, texts / 3, 1.0).item(), rel=1e-6
    )
    assert sigmoid_contrastive_loss(images * 7, texts, 1.0, 0.5).item() == pytest.approx(
        sigmoid_contrastive_loss(images, texts / 3, 1.0, 0.5).item(), rel=1e-6
    )


def test_a_batch_of_one_pair_has_no_softmax_loss_but_a_sigmoid_one() -> None:
    pair = torch.tensor([[1.0, 0.0]])

    assert softmax_contrastive_loss(pair, pair, 2.0).item() == 0
    assert sigmoid_contrastive_loss(pair, pair, 0.0, 0.0).item() == pytest.approx(math.log(1 + math.exp(-1)))
