"""Runs of the tasks that read text: specs, weights, candidates, what naive loops say of them, and what does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from preceptor import RunSpec
from preceptor_service.models import ArchitectureRegistry
from tests.naive.selection import select
from tests.naive.text import dual_encoder_losses, language_losses

TOKENS, LENGTH = 20, 6
DUAL = {"in_channels": 1, "image_size": 8, "vocab_size": TOKENS, "context_length": LENGTH, "width": 4}
GPT2 = {
    "model_type": "gpt2", "vocab_size": TOKENS, "context_length": LENGTH,
    "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": LENGTH,
}  # fmt: skip

State = dict[str, torch.Tensor]
Batch = dict[str, Any]


def _texts(rng: np.random.Generator, rows: int) -> Batch:
    mask = np.arange(LENGTH) < rng.integers(2, LENGTH + 1, (rows, 1))
    mask[rows // 2] = False  # one without a token
    return {
        "input_ids": rng.integers(0, TOKENS, (rows, LENGTH)) * mask,
        "attention_mask": mask.astype(np.int64),
    }


def _pairs(seed: int, rows: int = 40) -> Batch:
    rng = np.random.default_rng(seed)
    return {"image": rng.integers(0, 256, (rows, 1, 8, 8), dtype=np.uint8), **_texts(rng, rows)}


def _sequences(seed: int, rows: int = 40) -> Batch:
    return _texts(np.random.default_rng(seed), rows)


def _gpt2_losses(state: State, batch: Batch) -> list[float]:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {name: value for name, value in GPT2.items() if name not in ("model_type", "context_length")}
    config: Any = AutoConfig.for_model("gpt2", **settings)
    build: Any = AutoModelForCausalLM.from_config
    model = build(config).eval()
    model.load_state_dict(state)
    return language_losses(lambda tokens: model(input_ids=tokens).logits, batch)


@dataclass(frozen=True)
class TextTask:
    """One task with one small model."""

    task: str
    model: str
    settings: dict[str, Any]
    candidates: Callable[..., Batch]
    losses: Callable[[State, Batch], list[float]]

    def spec(self, run_id: str, **others: Any) -> RunSpec:
        return RunSpec(run_id=run_id, task=self.task, model=self.model, model_config=self.settings, **others)

    def weights(self, seed: int) -> State:
        generator = torch.Generator().manual_seed(seed)
        outline = ArchitectureRegistry().outline(self.model, self.settings).state_dict()
        state = {name: torch.randn(tensor.shape, generator=generator) * 0.5 for name, tensor in outline.items()}
        if "lm_head.weight" in state:  # tied to the embedding
            state["lm_head.weight"] = state["transformer.wte.weight"]
        return state

    def expected(
        self, run: RunSpec, batch: Batch, learner: State, reference: State, count: int, step: int
    ) -> list[int]:
        """Indices by the naive loop."""
        return select(
            run,
            learner_losses=self.losses(learner, batch),
            reference_losses=self.losses(reference, batch),
            count=count,
            step=step,
        )


TEXT_TASKS = {
    "image_text": TextTask("image_text", "dual_encoder", DUAL, _pairs, dual_encoder_losses),
    "causal_lm": TextTask("causal_lm", "causal_lm", GPT2, _sequences, _gpt2_losses),
}


def _changed(column: str, change: Callable[[Any], Any], batch: Batch) -> Batch:
    return {**batch, column: change(batch[column])}


def _set(value: int, array: Any) -> Any:
    array = array.copy()
    array[3, 1] = value
    return array


MISFITS: dict[str, tuple[Callable[[Batch], Batch], str]] = {
    "a token above the vocabulary": (
        partial(_changed, "input_ids", partial(_set, TOKENS)),
        f"column 'input_ids' has {TOKENS} in row 3; every value must be from 0 to {TOKENS - 1}",
    ),
    "a negative token": (partial(_changed, "input_ids", partial(_set, -1)), "column 'input_ids' has -1 in row 3"),
    "a mask of 2": (
        partial(_changed, "attention_mask", partial(_set, 2)),
        "column 'attention_mask' has 2 in row 3; every value must be from 0 to 1",
    ),
    "a mask of truth values": (
        partial(_changed, "attention_mask", lambda mask: mask.astype(bool)),
        r"column 'attention_mask' is bool of shape \[6\] per example; this run expects int64 of shape \[6\]",
    ),
    "int32 tokens": (
        partial(_changed, "input_ids", lambda tokens: tokens.astype(np.int32)),
        "column 'input_ids' is int32",
    ),
    "captions longer than the context": (
        lambda batch: {
            name: np.pad(value, ((0, 0), (0, 1))) if value.shape[1] == LENGTH else value
            for name, value in batch.items()
        },
        r"column 'input_ids' is int64 of shape \[7\] per example; this run expects int64 of shape \[6\]",
    ),
    "one token each": (
        partial(_changed, "input_ids", lambda tokens: tokens[:, 0]),
        r"column 'input_ids' is int64 of shape \[\]",
    ),
    "no mask": (lambda batch: {name: batch[name] for name in batch if name != "attention_mask"}, "has columns"),
    "a label beside": (lambda batch: {**batch, "label": np.zeros(40, np.int64)}, "has columns"),
}


def is_finite(losses: list[float]) -> list[bool]:
    return [math.isfinite(loss) for loss in losses]
