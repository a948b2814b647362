"""Memory of the gateway while eight streams each send 64 MB super-batches as fast as they can."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack
from typing import Any

import numpy as np

from benchmarks.process_memory import MB, resident_mb
from benchmarks.processes import child, service
from benchmarks.results import Figure
from preceptor import RunSpec, SelectionClient

MIB = 1 << 20
STREAMS, IN_FLIGHT, SECONDS = 8, 2, 40.0
ROWS = 20_700  # 63.8 MB of images and labels
SUB_BATCH_SIZE = ROWS // 5
WINDOW_BYTES = 64 * MIB
ALLOWANCE_MB = 150.0
MODEL_CONFIG = {"in_channels": 3, "image_size": 32, "num_classes": 10}
SPEC: dict[str, Any] = {"run_id": "memory", "model": "null", "model_config": MODEL_CONFIG}
_SAMPLE_EVERY_S = 0.1
_TIMEOUT_S = 300.0


def run() -> tuple[list[Figure], dict[str, Any]]:
    """Returns the figures and the raw samples."""
    gateway = {"window_bytes": WINDOW_BYTES, "max_super_batch_bytes": WINDOW_BYTES, "deadline_s": 60}
    scorer = {"replicas": 2, "num_cpus": 1, "micro_batch_rows": 1024}
    with service({"gateway": gateway, "scorer": scorer}) as ports, ExitStack() as stack:
        with SelectionClient(f"127.0.0.1:{ports['grpc']}") as client:
            selection = client.create_run(RunSpec(**SPEC))
            selection.push_reference({"nothing": np.zeros(1, np.float32)})
            selection.push_weights({"nothing": np.zeros(1, np.float32)}, step=0)
        arguments = (str(ports["grpc"]), json.dumps(SPEC))
        trainers = [stack.enter_context(child("trainer", *arguments, str(rank))) for rank in range(STREAMS)]
        idle = resident_mb(ports["gateway_pid"])
        with Sampler(ports["gateway_pid"]) as sampler:
            for trainer in trainers:
                trainer.tell(seconds=SECONDS, rows=ROWS, count=SUB_BATCH_SIZE, in_flight=IN_FLIGHT)
            answers = sum(len(trainer.answer(_TIMEOUT_S)["times"]) for trainer in trainers)
    own = [sample["own"] for sample in sampler.samples]
    windows = STREAMS * WINDOW_BYTES / MB
    figures = [
        Figure("idle, without shared memory", idle["own"], "MB"),
        Figure("peak above idle, without shared memory", max(own) - idle["own"], "MB", windows + ALLOWANCE_MB),
        Figure("peak above idle, shared object-store pages included", _peak(sampler, "rss") - idle["rss"], "MB"),
        Figure("peak above idle, proportional share (PSS)", _peak(sampler, "pss") - idle["pss"], "MB"),
        Figure("configured windows", windows, "MB"),
        Figure("answers meanwhile", answers, ""),
    ]
    return figures, {"idle_mb": idle, "samples_mb": sampler.samples}


class Sampler:
    """Reads a process's memory every 0.1 s, in a thread of its own, inside a `with` block."""

    def __init__(self, pid: int) -> None:
        self.samples: list[dict[str, float]] = []
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        started = time.monotonic()
        while not self._done.wait(_SAMPLE_EVERY_S):
            self.samples.append({"at_s": round(time.monotonic() - started, 2), **resident_mb(self._pid)})


def _peak(sampler: Sampler, name: str) -> float:
    return max(sample[name] for sample in sampler.samples)
