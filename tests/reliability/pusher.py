"""Processes that push until they die, for `atomic_push`. Run as a program: forks one for each line that it reads.

A forked process costs milliseconds where a new interpreter costs a second, and the program itself has no threads, so
that forking it is safe. What the processes say comes as JSON lines: `pushing` before a push, `committed` once it is
answered, and from the program `ended`, with the signal or exit status.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT
from preceptor_service import failpoints
from preceptor_service.config import WeightsConfig
from preceptor_service.storage import Storage, open_storage
from preceptor_service.weight_collection import UPLOAD_GRACE_S
from preceptor_service.weight_store import WeightStore
from preceptor_service.weight_versions import Role
from tests.reliability.page_cache import PageCache
from tests.reliability.push_bugs import PUSH_BUGS
from tests.weight_store.pushing import create_run

RUNS = ("first", "second", "third")
KEEP_VERSIONS = 2
MAX_BYTES = 1 << 20
_PUSHES = 40


@dataclass(frozen=True)
class Task:
    """One process: where it pushes, and where and how it dies.

    Attributes:
        settings: of the store, as JSON.
        point: where it dies.
        passes: how often it gets past there before.
        seed: of all that it does.
        limbo: an empty directory beside the store for what a power failure brings back; None: killed only.
        bug: one of `PUSH_BUGS` that the service has meanwhile.
    """

    settings: str
    point: failpoints.Failpoint
    passes: int
    seed: int
    limbo: str | None = None
    bug: str | None = None

    @property
    def rng(self) -> random.Random:
        """The same numbers each time."""
        return random.Random(f"{self.seed} {self.point}")


@dataclass(frozen=True)
class Push:
    """What is pushed; the content follows from `content`."""

    run_id: str
    role: Role
    step: int
    content: int
    rewind: bool = False

    @property
    def data(self) -> bytes:
        """Up to 200 kB, the same each time."""
        rng = random.Random(self.content)
        return rng.randbytes(rng.choice((1, 100, 5_000, 200_000)))

    @property
    def digest(self) -> str:
        """As the store names it."""
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"


def open_store(storage: Storage) -> WeightStore:
    """A store in which everything that expired is old enough to be collected."""
    return WeightStore(storage, KEEP_VERSIONS, MAX_BYTES, grace_s=-10.0)


def commit(store: WeightStore, push: Push) -> int:
    """Pushes in chunks, as the gateway does, and returns the version."""
    data = push.data
    with store.stage(len(data)) as staged:
        for start in range(0, len(data), 65_536):
            staged.write(data[start : start + 65_536])
        staged.seal(hashlib.sha256(data).digest())
        base = store.newest_number(push.run_id, push.role)
        return store.commit(push.run_id, push.role, staged, push.step, base, push.rewind).version


class Pushers:
    """The program, with a pipe to it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, task: Task) -> tuple[list[dict[str, Any]], int]:
        """Has a process do `task`, and returns what it said and how it ended: `-9` where it was killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(task)) + "\n")
        self._process.stdin.flush()
        said: list[dict[str, Any]] = []
        for line in self._process.stdout:
            message = json.loads(line)
            if "ended" in message:
                return said, int(message["ended"])
            said.append(message)
        raise RuntimeError("the program that forks pushing processes ended")


@contextmanager
def pushers() -> Iterator[Pushers]:
    """Runs the program for the length of the block; its environment is that of now."""
    paths = [str(ROOT / "clients" / "python"), str(ROOT / "services"), str(ROOT)]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.reliability.pusher"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Pushers(process)
        finally:
            process.kill()


def _push_until_death(task: Task) -> None:
    rng = task.rng
    settings = WeightsConfig.model_validate_json(task.settings)
    storage = open_storage(settings)
    for run_id in RUNS:
        create_run(storage, run_id)
    die = None
    if task.limbo is not None:
        cache = PageCache(Path(str(settings.path)), Path(task.limbo), rng)
        cache.watch()
        die = cache.fail
    if task.bug is not None:
        PUSH_BUGS[task.bug]()
    failpoints.arm(task.point, task.passes, die)
    store = open_store(storage)
    steps = dict.fromkeys(RUNS, 0)
    for number in range(_PUSHES):
        push = _next_push(store, steps, rng, number)
        _say(pushing=asdict(push))
        _say(committed=commit(store, push))
        if rng.random() < 0.5:
            _leave_behind(store, rng)
            store.collect()


def _next_push(store: WeightStore, steps: dict[str, int], rng: random.Random, number: int) -> Push:
    run_id = rng.choice(RUNS)
    content = rng.randrange(number + 1) if rng.random() < 0.2 else 1000 + number  # now and then what was pushed before
    if store.head(run_id, "reference") is None and rng.random() < 0.2:
        return Push(run_id, "reference", 0, content)
    rewind = rng.random() < 0.1
    steps[run_id] = max(0, steps[run_id] - 3) if rewind else steps[run_id] + rng.randint(1, 2)
    return Push(run_id, "learner", steps[run_id], content, rewind)


def _leave_behind(store: WeightStore, rng: random.Random) -> None:
    """Leaves what processes that died long ago may have left: an upload, and a blob that a collection had set aside."""
    long_ago = time.time() - 2 * UPLOAD_GRACE_S
    abandoned = store.storage.staging / f"{rng.randbytes(16).hex()}.upload"
    abandoned.write_bytes(b"half")
    os.utime(abandoned, (long_ago, long_ago))
    head = store.head(rng.choice(RUNS), "learner")
    if head is not None:
        name = head.digest.removeprefix("sha256:")
        with suppress(FileNotFoundError):  # lost by a seeded bug
            store.storage.rename(f"blobs/{name}", f"staging/{name}.{rng.randbytes(16).hex()}.set-aside")


def _say(**message: object) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def main() -> None:
    """Forks a process for each line, one after the other."""
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            try:
                _push_until_death(Task(**json.loads(line)))
                os._exit(0)
            finally:  # it raised
                traceback.print_exc()
                os._exit(1)
        _, status = os.waitpid(process, 0)
        _say(ended=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
