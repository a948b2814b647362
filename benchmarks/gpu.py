"""Candidates per second with scorers on a GPU: the service without Ray, its engine, and bare torch beside them."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

from benchmarks.processes import child, service
from benchmarks.results import Figure
from benchmarks.rounds import interleaved, median, rounded
from benchmarks.throughput import engine_rate, push_models, service_rate, share

MODELS: dict[str, dict[str, Any]] = {
    "ViT-Ti/16 of 224": {
        "model": "image_classifier",
        "model_config": {
            "model_type": "vit",
            "in_channels": 3,
            "image_size": 224,
            "num_classes": 1000,
            "hidden_size": 192,
            "num_hidden_layers": 12,
            "num_attention_heads": 3,
            "intermediate_size": 768,
        },
    },
    "CNN of 32": {
        "model": "small_cnn",
        "model_config": {"in_channels": 3, "image_size": 32, "num_classes": 10, "width": 64},
    },
}
ROWS = {"ViT-Ti/16 of 224": 256, "CNN of 32": 4096}
MICRO_BATCH_ROWS = {"ViT-Ti/16 of 224": 256, "CNN of 32": 1024}
KEPT = 0.2
ROUNDS, SECONDS = 3, 2.0


def run() -> tuple[list[Figure], dict[str, Any]]:
    """Returns the figures and the raw candidates per second.

    Raises:
        RuntimeError: a child found no GPU.
    """
    figures: list[Figure] = []
    raw: dict[str, Any] = {}
    for name, model in MODELS.items():
        found, rates = _measured(name, {"run_id": "gpu", **model})
        figures += found
        raw |= {f"{name}, {who}": rounded(numbers, 1) for who, numbers in rates.items()}
    return figures, raw


def _measured(name: str, spec: dict[str, Any]) -> tuple[list[Figure], dict[str, list[list[float]]]]:
    rows, micro_batch_rows = ROWS[name], MICRO_BATCH_ROWS[name]
    count = int(KEPT * rows)
    scorer = {"device": "cuda", "micro_batch_rows": micro_batch_rows}
    with ExitStack() as stack:
        ports = stack.enter_context(service({"pool": "in-process", "scorer": scorer}))
        push_models(ports["grpc"], spec)
        trainer = stack.enter_context(child("trainer", str(ports["grpc"]), json.dumps(spec), "0"))
        engine = stack.enter_context(
            child("engine", str(ports["store"]), json.dumps(spec), "cuda", "2", str(micro_batch_rows))
        )
        bare = stack.enter_context(child("bare_torch", json.dumps(spec), str(micro_batch_rows)))
        candidates = {
            "service": lambda: service_rate(trainer, rows, count, SECONDS),
            "engine": lambda: engine_rate([engine], rows, count, SECONDS),
            "bare": lambda: engine_rate([bare], rows, count, SECONDS),
        }
        interleaved(candidates, 1)
        rates = interleaved(candidates, ROUNDS)
    figures = [
        Figure(f"{name}: service", median(rates["service"]), "candidates/s"),
        Figure(f"{name}: engine", median(rates["engine"]), "candidates/s"),
        Figure(f"{name}: bare torch", median(rates["bare"]), "candidates/s"),
        share(f"{name}: service ÷ engine", rates["service"], rates["engine"], None),
        share(f"{name}: engine ÷ bare torch", rates["engine"], rates["bare"], None),
    ]
    return figures, rates
