"""The `preceptor` command as a user runs it: in processes of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TIMEOUT_S = 120.0


def environment(repository: Path, **variables: str) -> dict[str, str]:
    paths = [str(repository / "clients/python"), str(repository / "services"), str(repository)]
    ours = {"PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "160", "PYTHONUNBUFFERED": "1"}
    left = {name: value for name, value in os.environ.items() if not name.startswith("PRECEPTOR_")}
    return {**left, **ours, **variables}


@dataclass(frozen=True)
class Ran:
    """A command that ended."""

    code: int
    out: str
    err: str


@dataclass
class Serving:
    """`preceptor serve` under way; what it prints is read by a thread of its own."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def out(self) -> str:
        with self.changed:
            return "".join(self.lines)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Waits until it has printed `pattern`."""
        found: re.Match[str] | None = None
        with self.changed:

            def is_printed() -> bool:
                nonlocal found
                found = re.search(pattern, "".join(self.lines))
                return found is not None or self.process.poll() is not None

            self.changed.wait_for(is_printed, TIMEOUT_S)
        if found is None:
            pytest.fail(f"it never printed {pattern!r}, but:\n{self.out}")
        return found

    def port(self) -> int:
        return int(self.wait_for(r"is serving on 127\.0\.0\.1:(\d+)\n")[1])

    def end(self, number: signal.Signals) -> int:
        """Sends a signal, and returns the exit status."""
        self.process.send_signal(number)
        code = self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self.changed:
                self.lines.append(line)
                self.changed.notify_all()
        with self.changed:
            self.changed.notify_all()


@pytest.fixture(scope="session")
def preceptor(repository: Path) -> Callable[..., Ran]:
    """Runs the command to its end; keywords are environment variables."""

    def run(*arguments: str, **variables: str) -> Ran:
        ended = subprocess.run(
            [sys.executable, "-m", "preceptor_service", *arguments],
            env=environment(repository, **variables),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        return Ran(ended.returncode, ended.stdout, ended.stderr)

    return run


@pytest.fixture(scope="session")
def serve(repository: Path) -> Iterator[Callable[..., Serving]]:
    """Starts `preceptor serve` with the in-process pool on free ports; what still runs in the end is killed."""
    started: list[Serving] = []

    def start(store: Path | str, *arguments: str) -> Serving:
        fixed = ["--pool", "in-process", "--host", "127.0.0.1", "--port", "0", "--metrics-port", "0"]
        process = subprocess.Popen(
            [sys.executable, "-m", "preceptor_service", "serve", *fixed, "--store", str(store), *arguments],
            env=environment(repository),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(Serving(process))
        return started[-1]

    yield start
    for serving in started:
        if serving.process.poll() is None:
            serving.process.kill()
            serving.process.wait(TIMEOUT_S)
        if serving.process.stdout is not None:
            serving.process.stdout.close()


@pytest.fixture(scope="session")
def service(serve: Callable[..., Serving], tmp_path_factory: pytest.TempPathFactory) -> Serving:
    """One that the tests which only look share."""
    return serve(tmp_path_factory.mktemp("cli") / "store")
