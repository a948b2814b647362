"""Child process: a trainer that keeps super-batches in flight and notes when each answer came."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from concurrent.futures import Future
from typing import Any

import numpy as np

from benchmarks.processes import requests, say
from preceptor import RunSpec, Selection, SelectionClient

_TIMEOUT_S = 60.0


def main(port: int, spec: dict[str, Any], rank: int) -> None:
    """Answers each `{"seconds", "rows", "count", "in_flight"}` with the times of answers, on the monotonic clock."""
    config = spec["model_config"]
    step = 0
    with SelectionClient(f"127.0.0.1:{port}", timeout_s=_TIMEOUT_S) as client:
        run = client.create_run(RunSpec(**spec))
        say(run_id=run.run_id)
        for request in requests():
            rng = np.random.default_rng(rank)
            shape = (request["rows"], config["in_channels"], config["image_size"], config["image_size"])
            batch = {
                "image": rng.integers(0, 256, shape, dtype=np.uint8),
                "label": rng.integers(0, config["num_classes"], request["rows"]),
            }
            started = time.monotonic()
            times: list[float] = []
            pending: deque[Future[Selection]] = deque()
            while pending or time.monotonic() - started < request["seconds"]:
                is_on = time.monotonic() - started < request["seconds"]
                while is_on and len(pending) < request["in_flight"]:
                    step += 1
                    pending.append(run.submit(batch, request["count"], step=step, rank=rank))
                pending.popleft().result(_TIMEOUT_S)
                times.append(time.monotonic())
            say(started=started, times=times)


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]))
