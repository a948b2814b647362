"""`CausalLm`: sequences of tokens, each predicted from those before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from preceptor_service.columns import ATTENTION_MASK, INPUT_IDS
from preceptor_service.tasks.gradients import cross_entropy_gradient_norm
from preceptor_service.tasks.task import Columns, input_columns_named

if TYPE_CHECKING:
    import torch

    PerToken: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

PIECE_LOGITS = 1 << 27
"""Logits that one forward pass may give: 512 MiB of float32, and as much again while they become losses."""


class CausalLm:
    """A sequence as a tokenizer gives it: int64 `input_ids` and `attention_mask`, both `[L]`.

    The module's `forward(input_ids, attention_mask)` gives logits `[N, L, V]`; those at position t predict token
    t + 1. The loss is the mean over a sequence's targets of their cross-entropy in float32; a target is a token that,
    like the one before it, is not padding. A sequence without a target (all padding, or a single token) has none.

    Source: none; Evans et al., arXiv 2312.05328, name language as future work. The mean per sequence, rather than
    the sum, keeps long sequences from being preferred for their length.
    """

    def columns(self, module: torch.nn.Module) -> Columns:
        """Returns `input_ids` and `attention_mask` as `module` reads them."""
        return input_columns_named(
            module, (INPUT_IDS, ATTENTION_MASK), "task 'causal_lm' needs a causal language model"
        )

    def loss(self, module: torch.nn.Module, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the mean next-token loss of each sequence, float32 `[N]`; NaN where it has no target.

        Runs the module on so many rows at a time that their logits number at most `PIECE_LOGITS`, at least on one.
        """
        from torch.nn.functional import cross_entropy

        return self._mean_over_targets(module, features, partial(cross_entropy, reduction="none"))

    def gradient_norm(self, module: torch.nn.Module, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the mean over each sequence's targets of ‖softmax(logits) − one_hot(token)‖₂, as `loss`.

        By the triangle inequality the gradient of the mean loss has at most the mean of the gradients' norms.
        """
        return self._mean_over_targets(module, features, cross_entropy_gradient_norm)

    def _mean_over_targets(
        self, module: torch.nn.Module, features: Mapping[str, torch.Tensor], per_token: PerToken
    ) -> torch.Tensor:
        import torch

        input_ids, mask = features[INPUT_IDS], features[ATTENTION_MASK]
        vocab_size = next((column.below for column in self.columns(module) if column.name == INPUT_IDS), None)
        rows = max(1, PIECE_LOGITS // (input_ids.shape[1] * (vocab_size or 1)))
        pieces = zip(torch.split(input_ids, rows), torch.split(mask, rows), strict=True)
        return torch.cat([_sequence_means(module, *piece, per_token) for piece in pieces])


def _sequence_means(
    module: torch.nn.Module, input_ids: torch.Tensor, mask: torch.Tensor, per_token: PerToken
) -> torch.Tensor:
    import torch

    logits = module(input_ids=input_ids, attention_mask=mask)
    if logits.ndim != 3 or logits.shape[:2] != input_ids.shape:
        raise ValueError(f"logits have shape {tuple(logits.shape)} for tokens {tuple(input_ids.shape)}; give [N, L, V]")
    is_token = mask.bool()
    is_target = is_token[:, 1:] & is_token[:, :-1]
    # One sequence at a time: the softmax copies the logits that it is given.
    sequences = zip(logits, input_ids, strict=True)
    of_tokens = torch.stack([per_token(sequence[:-1].float(), tokens[1:]) for sequence, tokens in sequences])
    return torch.where(is_target, of_tokens, 0).sum(1) / is_target.sum(1)
