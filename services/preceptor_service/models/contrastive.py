"""The losses that train dual encoders. For trainers: the service itself scores pairs one by one.

Pure and differentiable. Both take the embeddings of a batch of n pairs, row i of one belonging to row i of the other,
and bring them to length 1 themselves.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, logsigmoid, normalize


def softmax_contrastive_loss(
    image_embeddings: torch.Tensor, text_embeddings: torch.Tensor, log_scale: torch.Tensor | float
) -> torch.Tensor:
    """Returns the loss of CLIP: each image picks its caption among the batch's, each caption its image.

    With s_ij = exp(log_scale) · x_i·y_j: −1/(2n) Σ_i [log softmax_j(s_ij)[i] + log softmax_j(s_ji)[i]].

    Args:
        image_embeddings: x, `[n, D]`.
        text_embeddings: y, `[n, D]`.
        log_scale: log of the inverse temperature, learnt; CLIP starts at log(1/0.07) and clips at log(100).

    Returns:
        a scalar.

    Source: Radford et al., ICML 2021 (arXiv 2103.00020), figure 3.
    """
    similarities = _similarities(image_embeddings, text_embeddings) * _exp(log_scale)
    own = torch.arange(len(similarities), device=similarities.device)
    return (cross_entropy(similarities, own) + cross_entropy(similarities.T, own)) / 2


def sigmoid_contrastive_loss(
    image_embeddings: torch.Tensor,
    text_embeddings: torch.Tensor,
    log_scale: torch.Tensor | float,
    bias: torch.Tensor | float,
) -> torch.Tensor:
    """Returns the loss of SigLIP: for every image and caption, whether they belong together.

    With z_ij = 1 for i = j and −1 otherwise: −1/n Σ_i Σ_j log σ(z_ij (exp(log_scale) · x_i·y_j + bias)).

    Args:
        image_embeddings: x, `[n, D]`.
        text_embeddings: y, `[n, D]`.
        log_scale: log of the inverse temperature, learnt; SigLIP starts at log(10).
        bias: learnt; SigLIP starts at −10.

    Returns:
        a scalar.

    Source: Zhai et al., ICCV 2023 (arXiv 2303.15343), equation 1 and algorithm 1.
    """
    logits = _similarities(image_embeddings, text_embeddings) * _exp(log_scale) + bias
    belongs = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -logsigmoid(belongs * logits).sum() / len(logits)


def _similarities(image_embeddings: torch.Tensor, text_embeddings: torch.Tensor) -> torch.Tensor:
    return normalize(image_embeddings.float(), dim=1) @ normalize(text_embeddings.float(), dim=1).T


def _exp(log_scale: torch.Tensor | float) -> torch.Tensor:
    return torch.as_tensor(log_scale).exp()
