"""One push as the gateway does it, for tests; run as a program, a process that races others or dies half-way."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

from preceptor import RunSpec
from preceptor.errors import PreceptorError
from preceptor_service.config import WeightsConfig
from preceptor_service.run_store import RunRecord, RunStore
from preceptor_service.storage import Storage, open_storage
from preceptor_service.weight_store import WeightStore
from preceptor_service.weight_versions import Role, WeightsVersion


def create_run(root: Path | Storage, run_id: str = "run") -> RunRecord:
    """Creates a run for weights to be pushed to; a new life of it where it was deleted."""
    return RunStore(root).create(RunRecord(RunSpec(run_id, "small_cnn"), time.time(), 64))


def store_with_runs(
    root: Path | Storage,
    keep_versions: int,
    max_bytes: int = 1000,
    grace_s: float = 60.0,
    run_ids: tuple[str, ...] = ("run", "other"),
) -> WeightStore:
    """A store of weights in which those runs exist."""
    for run_id in run_ids:
        create_run(root, run_id)
    return WeightStore(root, keep_versions, max_bytes, grace_s)


def push(
    store: WeightStore,
    data: bytes,
    *,
    step: int = 0,
    base: int | None = None,
    run_id: str = "run",
    role: Role = "learner",
    rewind: bool = False,
    is_current: Callable[[], bool] = lambda: True,
) -> WeightsVersion:
    """Commits `data`; onto the newest version where `base` is None."""
    with store.stage(len(data)) as staged:
        staged.write(data)
        staged.seal(hashlib.sha256(data).digest())
        if base is None:
            head = store.head(run_id, role)
            base = head.version if head else 0
        return store.commit(run_id, role, staged, step, base, rewind, is_current)


def _race(store: WeightStore, data: bytes) -> None:
    for line in sys.stdin:
        with store.stage(len(data)) as staged:
            staged.write(data)
            staged.seal(hashlib.sha256(data).digest())
            print("ready", flush=True)  # noqa: T201
            sys.stdin.readline()
            try:
                outcome = str(store.commit(line.strip(), "learner", staged, 0, 0).version)
            except PreceptorError as error:
                outcome = type(error).__name__
            print(outcome, flush=True)  # noqa: T201


def _stall(store: WeightStore, data: bytes) -> None:
    with store.stage(2 * len(data)) as staged:
        staged.write(data)
        print("ready", flush=True)  # noqa: T201
        sys.stdin.readline()


if __name__ == "__main__":
    opened = WeightStore(open_storage(WeightsConfig.model_validate_json(sys.argv[2])), 2, 1 << 20)
    {"race": _race, "stall": _stall}[sys.argv[1]](opened, sys.argv[3].encode())
