"""Child process: the `ScoringEngine` called by a plain loop, with neither gRPC nor Ray around it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.processes import requests, say
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.randomness import uniforms
from preceptor_service.scores import learnability
from preceptor_service.scoring.engine import ScoringEngine
from preceptor_service.scoring.pool import ModelRef, ScoringModels
from preceptor_service.selectors import SelectorSettings, softmax
from preceptor_service.super_batch import SuperBatch
from preceptor_service.weight_store import WeightStore


def main(store: str, spec: dict[str, Any], device: Literal["cpu", "cuda"], threads: int, micro_batch_rows: int) -> None:
    """Answers each `{"seconds": s, "rows": B, "count": b}` with the candidates that it selected from per second."""
    weights = WeightStore(Path(store), keep_versions=4, max_bytes=4 << 30)
    engine = ScoringEngine(weights, ArchitectureRegistry(), device, threads)
    run_id, model_config = spec["run_id"], spec["model_config"]
    learner, reference = (_model(weights, spec, role) for role in ("learner", "reference"))
    models = ScoringModels(run_id, "classification", learner, reference)
    engine.load(models)
    say(threads=threads)
    for request in requests():
        super_batch = random_images(request["rows"], model_config)
        started, candidates, step = time.perf_counter(), 0, 0
        while time.perf_counter() - started < request["seconds"]:
            parts = [engine.losses(models, micro_batch) for micro_batch in super_batch.micro_batches(micro_batch_rows)]
            scores = learnability(
                np.concatenate([part.learner for part in parts if part.learner is not None]),
                np.concatenate([part.reference for part in parts if part.reference is not None]),
            )
            noise = uniforms(0, run_id, step, 0, super_batch.rows)
            softmax(scores, request["count"], noise, SelectorSettings())
            candidates, step = candidates + super_batch.rows, step + 1
        say(rate=candidates / (time.perf_counter() - started))


def _model(weights: WeightStore, spec: dict[str, Any], role: Any) -> ModelRef:
    head = weights.head(spec["run_id"], role)
    if head is None:
        raise RuntimeError(f"run {spec['run_id']!r} has no {role}; the benchmark pushes it first")
    return ModelRef(spec["model"], json.dumps(spec["model_config"], sort_keys=True), head.digest, head.total_bytes)


def random_images(rows: int, config: dict[str, Any]) -> SuperBatch:
    """Returns candidates for the image model of that configuration."""
    rng = np.random.default_rng(0)
    shape = (rows, config["in_channels"], config["image_size"], config["image_size"])
    columns: dict[str, NDArray[np.generic]] = {
        "image": rng.integers(0, 256, shape, dtype=np.uint8),
        "label": rng.integers(0, config["num_classes"], rows),
    }
    return SuperBatch(columns, rows)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))  # type: ignore[arg-type]
