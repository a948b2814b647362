"""`causal_lm`: any decoder-only language model of Hugging Face transformers, from its config alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from preceptor.errors import InvalidRunError
from preceptor.quoting import quoted
from preceptor_service.columns import token_columns
from preceptor_service.models.transformers_config import (
    ContextLength,
    Setting,
    VocabSize,
    built,
    check_settings,
    plain,
    settable,
    transformers_module,
)
from preceptor_service.models.transformers_model import TransformersModel

# These see tokens that they are to predict, or take no mask, though transformers lists them.
_REFUSED_TYPES = frozenset({"cpmant", "reformer", "xlm", "xlnet"})
# These never look ahead, though their configs say is_decoder = False.
_CAUSAL_TYPES = frozenset({"gpt_neox", "gpt_neox_japanese"})
_SET_BY_US = {"vocab_size": "vocab_size"}


class CausalLanguageModel(TransformersModel):
    """A causal language model of transformers that reads tokens and gives logits."""

    def __init__(self, model: nn.Module, context_length: int, vocab_size: int) -> None:
        super().__init__(model, token_columns(context_length, vocab_size))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Returns the logits `[N, L, V]` of tokens int64 `[N, L]`; those at t see the tokens up to t."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        logits: torch.Tensor = output.logits
        return logits


def causal_lm(
    *,
    model_type: str,
    vocab_size: VocabSize,
    context_length: ContextLength,
    **settings: Setting,
) -> nn.Module:
    """Returns an untrained language model of transformers.

    Args:
        model_type: transformers' name of the architecture, e.g. `"gpt2"`, `"llama"`, `"qwen2"`.
        vocab_size: token ids lie in [0, vocab_size).
        context_length: tokens of a sequence with its padding, on its right.
        settings: further numbers, switches and lists that the architecture's config knows, e.g.
            `hidden_size=256, num_hidden_layers=4`, and `rope_theta` where it has rotary positions.

    Raises:
        InvalidRunError: transformers is not installed; no decoder-only architecture of that name; a setting as
            `check_settings` says; sequences longer than the model's positions.
    """
    transformers = transformers_module()
    default = _default(transformers, model_type)
    defaults = settable(default)
    rope = getattr(default, "rope_parameters", None)
    if isinstance(rope, dict) and "rope_theta" in rope:
        defaults["rope_theta"] = rope["rope_theta"]
    check_settings(model_type, defaults, _SET_BY_US, settings)
    config = transformers.AutoConfig.for_model(model_type, **plain(settings), vocab_size=vocab_size)
    config.use_cache = False
    config._experts_implementation = "eager"  # the grouped product has no shape rule for float32
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and context_length > positions:
        raise InvalidRunError(
            f"context_length is {context_length}, the model has {positions} positions; shorten the sequences or raise "
            "its setting of positions"
        )
    return CausalLanguageModel(built(transformers.AutoModelForCausalLM, config), context_length, vocab_size)


def _default(transformers: Any, model_type: str) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in _REFUSED_TYPES:
        config = transformers.AutoConfig.for_model(model_type)
        is_encoder = config.to_dict().get("is_decoder") is False and model_type not in _CAUSAL_TYPES
        # One with configs inside is made of several networks, and what it reads beside tokens we do not have.
        if not (is_encoder or config.is_encoder_decoder or config.sub_configs):
            return config
    raise InvalidRunError(
        f"model_type is {quoted(model_type)}, which is no decoder-only language model that transformers builds from a "
        "config; give one, like 'gpt2', 'llama' or 'qwen2'"
    )
