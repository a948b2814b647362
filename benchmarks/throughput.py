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
            _push(ports["grpc"])
        trainers = [stack.enter_context(child("trainer", str(p["grpc"]), json.dumps(SPEC), "0")) for p in (ray, alone)]
        engine = [str(ray["store"]), "throughput", json.dumps(MODEL_CONFIG)]
        wide, *narrow = (
            stack.enter_context(child("engine", *engine, threads, str(MICRO_BATCH_ROWS)))
            for threads in (str(CORES), *["1"] * CORES)
        )
        candidates: dict[str, Callable[[], float]] = {
            "ray": lambda: _service_rate(trainers[0]),
            "in_process": lambda: _service_rate(trainers[1]),
            "engine_threads": lambda: _engine_rate([wide]),
            "engines": lambda: _engine_rate(narrow),
        }
        interleaved(candidates, 1)
        rates = interleaved(candidates, ROUNDS)
    best = max(("engine_threads", "engines"), key=lambda name: median(rates[name]))
    figures = [
        Figure("service, Ray pool", median(rates["ray"]), "candidates/s"),
        Figure("service, in-process pool", median(rates["in_process"]), "candidates/s"),
        Figure("one engine, 2 threads", median(rates["engine_threads"]), "candidates/s"),
        Figure("two engines, 1 thread each", median(rates["engines"]), "candidates/s"),
        _share("Ray pool ÷ the faster engine", rates["ray"], rates[best], 0.8),
        _share("in-process pool ÷ one engine, 2 threads", rates["in_process"], rates["engine_threads"], None),
    ]
    return figures, {f"{name}_candidates_per_s": rounded(numbers, 1) for name, numbers in rates.items()}


def _share(name: str, above: list[list[float]], below: list[list[float]], limit: float | None) -> Figure:
    return Figure(name, median(above) / median(below), "×", limit, "at least", spread(ratios(above, below)))


def _push(port: int) -> None:
    registry = ArchitectureRegistry()
    with SelectionClient(f"127.0.0.1:{port}") as client:
        selection = client.create_run(RunSpec(**SPEC))
        state = registry.build("small_cnn", MODEL_CONFIG).state_dict()
        selection.push_reference(state)
        selection.push_weights({name: tensor * 1.5 for name, tensor in state.items()}, step=0)


def _service_rate(trainer: Child) -> float:
    answer = trainer.ask(_TIMEOUT_S, seconds=SECONDS, rows=ROWS, count=SUB_BATCH_SIZE, in_flight=IN_FLIGHT)
    return float(ROWS * len(answer["times"]) / (answer["times"][-1] - answer["started"]))


def _engine_rate(engines: list[Child]) -> float:
    for engine in engines:
        engine.tell(seconds=SECONDS, rows=ROWS, count=SUB_BATCH_SIZE)
    return float(sum(engine.answer(_TIMEOUT_S)["rate"] for engine in engines))
