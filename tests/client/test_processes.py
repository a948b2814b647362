"""The client and its process: forks, exits, and what an import loads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from preceptor import Run, SelectionClient
from tests.client.conftest import candidates
from tests.client.fake_service import FakeService

EXIT_WITHOUT_CLOSING = """
import sys
import numpy as np
from preceptor import RunSpec, SelectionClient

client = SelectionClient(sys.argv[1])
run = client.create_run(RunSpec("digits", "small_cnn"))
print(run.select({"image": np.zeros((8, 4))}, 2, 0).indices.tolist())
run.submit({"image": np.ones((8, 4))}, 2, 1)
"""

LIST_HEAVY_MODULES = """
import sys
import preceptor
print(sorted({"torch", "ray", "pydantic", "safetensors", "preceptor_service", "pandas"} & set(sys.modules)))
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_is_told_that_it_cannot_use_the_parents_client(
    service: FakeService, client: SelectionClient, run: Run
) -> None:
    run.select(candidates(), 2, 0)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        told = []
        for call in (lambda: run.select(candidates(), 2, 1), run.status, lambda: run.score(candidates())):
            try:
                call()
            except RuntimeError as error:
                told.append(str(error))
        client.close()
        os.write(writer, "\n".join(told).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read().splitlines()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(told) == 3
    assert all(f"opened in process {os.getpid()} and is used in process {child}" in text for text in told)
    assert run.select(candidates(first=1), 2, 1).step == 1


def test_a_program_may_exit_without_closing_its_client(service: FakeService) -> None:
    service.on_super_batch = lambda stream, received: stream.answer(received) if received.key == (0, 0) else None
    ended = python(EXIT_WITHOUT_CLOSING, service.target)
    assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (0, "[0, 1]", "")


def test_importing_the_client_loads_nothing_heavy() -> None:
    ended = python(LIST_HEAVY_MODULES)
    assert (ended.stdout.strip(), ended.stderr) == ("[]", "")
