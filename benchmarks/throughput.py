"""Candidates per second through the service with a real model, against its own engine called by a plain loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from benchmarks.processes import Child, child, service
from benchmarks.results import Figure
from benchmarks.rounds import interleaved, median, ratios, rounded, spread
from preceptor import RunSpec, SelectionClient
from preceptor_service.models import ArchitectureRegistry

ROWS, SUB_BATCH_SIZE, IN_FLIGHT = 1024, 204, 4
CORES = 2
MICRO_BATCH_ROWS = 512
MODEL_CONFIG = {"in_channels": 3, "image_size": 32, "num_classes": 10, "width": 32}
SPEC: dict[str, Any] = {"run_id": "throughput", "model": "small_cnn", "model_config": MODEL_CONFIG}
ROUNDS, SECONDS = 5, 4.0
_TIMEOUT_S = 120.0


def run() -> tuple[list[Figure], dict[str, Any]]:
    """Returns the figures and the raw candidates per second."""
    scorer = {"micro_batch_rows": MICRO_BATCH_ROWS}
    with ExitStack() as stack:
        ray = stack.enter_context(service({"scorer": {**scorer, "replicas": CORES, "num_cpus": 1}}))
        alone = stack.enter_context(service({"pool": "in-process", "scorer": {**scorer, "threads": CORES}}))
        for ports in (ray, alone):
            push_models(ports["grpc"], SPEC)
        trainers = [stack.enter_context(child("trainer", str(p["grpc"]), json.dumps(SPEC), "0")) for p in (ray, alone)]
        engine = [str(ray["store"]), json.dumps(SPEC), "cpu"]
        wide, *narrow = (
            stack.enter_context(child("engine", *engine, threads, str(MICRO_BATCH_ROWS)))
            for threads in (str(CORES), *["1"] * CORES)
        )
        candidates: dict[str, Callable[[], float]] = {
            "ray": lambda: service_rate(trainers[0], ROWS, SUB_BATCH_SIZE, SECONDS),
            "in_process": lambda: service_rate(trainers[1], ROWS, SUB_BATCH_SIZE, SECONDS),
            "engine_threads": lambda: engine_rate([wide], ROWS, SUB_BATCH_SIZE, SECONDS),
            "engines": lambda: engine_rate(narrow, ROWS, SUB_BATCH_SIZE, SECONDS),
        }
        interleaved(candidates, 1)
        rates = interleaved(candidates, ROUNDS)
    best = max(("engine_threads", "engines"), key=lambda name: median(rates[name]))
    figures = [
        Figure("service, Ray pool", median(rates["ray"]), "candidates/s"),
        Figure("service, in-process pool", median(rates["in_process"]), "candidates/s"),
        Figure("one engine, 2 threads", median(rates["engine_threads"]), "candidates/s"),
        Figure("two engines, 1 thread each", median(rates["engines"]), "candidates/s"),
        share("Ray pool ÷ the faster engine", rates["ray"], rates[best], 0.8),
        share("in-process pool ÷ one engine, 2 threads", rates["in_process"], rates["engine_threads"], None),
    ]
    return figures, {f"{name}_candidates_per_s": rounded(numbers, 1) for name, numbers in rates.items()}


def share(name: str, above: list[list[float]], below: list[list[float]], limit: float | None) -> Figure:
    """Returns how much of one rate another one is, of medians over all rounds."""
    return Figure(name, median(above) / median(below), "×", limit, "at least", spread(ratios(above, below)))


def push_models(port: int, spec: dict[str, Any]) -> None:
    """Creates the run with a reference and another learner, both untrained: no speed depends on values."""
    with SelectionClient(f"127.0.0.1:{port}") as client:
        selection = client.create_run(RunSpec(**spec))
        state = ArchitectureRegistry().build(spec["model"], spec["model_config"]).state_dict()
        selection.push_reference(state)
        selection.push_weights({name: tensor * 1.5 for name, tensor in state.items()}, step=0)


def service_rate(trainer: Child, rows: int, count: int, seconds: float) -> float:
    """Returns the candidates per second that a service answers to one trainer with several in flight."""
    answer = trainer.ask(_TIMEOUT_S, seconds=seconds, rows=rows, count=count, in_flight=IN_FLIGHT)
    return float(rows * len(answer["times"]) / (answer["times"][-1] - answer["started"]))


def engine_rate(engines: list[Child], rows: int, count: int, seconds: float) -> float:
    """Returns the candidates per second of plain loops side by side."""
    for engine in engines:
        engine.tell(seconds=seconds, rows=rows, count=count)
    return float(sum(engine.answer(_TIMEOUT_S)["rate"] for engine in engines))
