"""Push of 100 MB of weights while the service scores: its time, and what trainers notice of it."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import Child, child, service
from benchmarks.results import Figure
from benchmarks.rounds import interleaved, median, ratios, rounded, spread, timed
from preceptor import RunSpec, SelectionClient
from preceptor.client import Run
from preceptor_service.models import ArchitectureRegistry

PUSHED_BYTES = 100_000_000
ROUNDS, WARM_UP = 8, 2
LOAD = {"seconds": 3.0, "rows": 256, "count": 51, "in_flight": 4}
MODEL_CONFIG = {"in_channels": 3, "image_size": 32, "num_classes": 10, "width": 8}
LADEN_CONFIG = {**MODEL_CONFIG, "cargo_bytes": PUSHED_BYTES}
SPEC: dict[str, Any] = {
    "run_id": "push",
    "model": "laden_cnn",
    "model_config": LADEN_CONFIG,
    "reference_model": "small_cnn",
    "reference_model_config": MODEL_CONFIG,
}
_TIMEOUT_S = 120.0


def run() -> tuple[list[Figure], dict[str, Any]]:
    """Returns the figures and the raw milliseconds."""
    state = ArchitectureRegistry().build("small_cnn", MODEL_CONFIG).state_dict()
    learner = {name: tensor.numpy() for name, tensor in state.items()}
    learner["cargo"] = np.random.default_rng(0).standard_normal(PUSHED_BYTES // 4).astype(np.float32)
    with (
        service({"scorer": {"replicas": 2, "num_cpus": 1}}) as ports,
        SelectionClient(f"127.0.0.1:{ports['grpc']}", timeout_s=_TIMEOUT_S) as client,
        child("trainer", str(ports["grpc"]), json.dumps(SPEC), "0") as trainer,
    ):
        selection = client.create_run(RunSpec(**SPEC))
        selection.push_reference(state)
        selection.push_weights(learner, step=0)
        bench = _Bench(selection, learner, trainer, ports["metrics"], Path(ports["store"]) / "written")
        candidates = {"write": bench.write, "push": bench.push, "quiet": bench.quiet}
        interleaved(candidates, WARM_UP)
        bench.commit_ms.clear()
        numbers = interleaved(candidates, ROUNDS)
    commit = [[number] for number in bench.commit_ms]
    calls = [[number] for number in bench.push_ms[-ROUNDS:]]
    write, gap_push, gap_quiet = numbers["write"], numbers["push"], numbers["quiet"]
    figures = [
        Figure("write and fsync of 100 MB, under load", median(write), "ms"),
        Figure("first byte to commit, under load", median(commit), "ms"),
        Figure("push to commit ÷ write and fsync", median(commit) / median(write), "×", spread=_spread(commit, write)),
        Figure("whole call: committed, and loaded by 2 scorers", median(calls), "ms"),
        Figure("longest gap between answers without a push", median(gap_quiet), "ms", spread=_range(gap_quiet)),
        Figure("longest gap between answers during a push", median(gap_push), "ms", spread=_range(gap_push)),
        Figure("gap during ÷ without", median(gap_push) / median(gap_quiet), "×", spread=_spread(gap_push, gap_quiet)),
    ]
    raw = {"write_ms": write, "commit_ms": commit, "call_ms": calls, "gap_push_ms": gap_push, "gap_quiet_ms": gap_quiet}
    return figures, {name: rounded(rounds, 1) for name, rounds in raw.items()}


class _Bench:
    """One run under load from another process, and what is done to it meanwhile."""

    def __init__(self, selection: Run, learner: dict[str, Any], trainer: Child, metrics_port: int, path: Path) -> None:
        self.push_ms: list[float] = []
        self.commit_ms: list[float] = []
        self._selection = selection
        self._learner = learner
        self._trainer = trainer
        self._metrics = f"http://127.0.0.1:{metrics_port}/metrics"
        self._path = path
        self._step = 0

    def write(self) -> float:
        """Returns how long writing and fsyncing the same bytes to the same file system takes under load, in ms."""
        with self._load() as load:
            took = timed(self._write_file)
        self._path.unlink()
        load.gap_ms()
        return took

    def push(self) -> float:
        """Returns the longest gap between answers around a push, in ms; notes how long the push took."""
        self._step += 1
        self._learner["cargo"][0] = self._step
        before = self._commit_seconds()
        with self._load() as load:
            self.push_ms.append(timed(lambda: self._selection.push_weights(self._learner, step=self._step)))
        self.commit_ms.append((self._commit_seconds() - before) * 1e3)
        return load.gap_ms()

    def quiet(self) -> float:
        """Returns the longest gap between answers without a push, in ms."""
        with self._load() as load:
            pass
        return load.gap_ms()

    def _load(self) -> _Load:
        return _Load(self._trainer)

    def _write_file(self) -> None:
        with self._path.open("wb") as file:
            file.write(self._learner["cargo"].data)
            file.flush()
            os.fsync(file.fileno())

    def _commit_seconds(self) -> float:
        with urllib.request.urlopen(self._metrics, timeout=_TIMEOUT_S) as response:  # noqa: S310 - our own service
            lines = response.read().decode().splitlines()
        name = "preceptor_weight_push_seconds_total"
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


class _Load:
    """Scoring load for the length of `LOAD`; the block runs once it has got going."""

    _HEAD_START_S = 0.7

    def __init__(self, trainer: Child) -> None:
        self._trainer = trainer

    def __enter__(self) -> _Load:
        self._trainer.tell(**LOAD)
        time.sleep(self._HEAD_START_S)
        return self

    def __exit__(self, *failure: object) -> None:
        self._answer = self._trainer.answer(_TIMEOUT_S)

    def gap_ms(self) -> float:
        """Returns the longest time from one answer to the next."""
        times: list[float] = self._answer["times"]
        return max(later - earlier for earlier, later in pairwise(times)) * 1e3


def _spread(above: list[list[float]], below: list[list[float]]) -> str:
    return spread(ratios(above, below))


def _range(rounds: list[list[float]]) -> str:
    return spread([number for numbers in rounds for number in numbers])
