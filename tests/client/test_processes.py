"""The client and its process: forks, exits, and what an import loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

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

FORK = """
import os, sys, warnings
import numpy as np
from preceptor import RunSpec, SelectionClient

warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, from Python 3.12 on
candidates = {"image": np.zeros((8, 4)), "label": np.arange(8)}
client = SelectionClient(sys.argv[1])
run = client.create_run(RunSpec("digits", "small_cnn"))
run.select(candidates, 2, 0)
child = os.fork()
if child == 0:
    told = [str(os.getppid()), str(os.getpid())]
    for call in (lambda: run.select(candidates, 2, 1), run.status, lambda: run.score(candidates)):
        try:
            call()
        except RuntimeError as error:
            told.append(str(error))
    client.close()
    os.write(1, "".join(f"{line}\\n" for line in told).encode())
    os._exit(0)
assert os.waitpid(child, 0) == (child, 0)
print(run.select(candidates, 2, 1).step)
client.close()
"""

DATA_LOADER_WORKERS = """
import sys, warnings
import torch
from torch.utils.data import DataLoader, TensorDataset
from preceptor import RunSpec, SelectionClient
from preceptor.torch import SelectingLoader

if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # as above
    data = TensorDataset(torch.zeros(24, 4), torch.arange(24))
    loader = DataLoader(data, batch_size=8, num_workers=2, multiprocessing_context=sys.argv[2])
    with SelectionClient(sys.argv[1]) as client:
        batches = SelectingLoader(loader, client.create_run(RunSpec("digits", "small_cnn")), sub_batch_size=2)
        for _epoch in range(3):
            for _image, label in batches:
                print(*label.tolist())
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


def unexpected(stderr: str) -> list[str]:
    """The lines but those by which gRPC tells that it did nothing before a fork."""
    return [line for line in stderr.splitlines() if not line.endswith("skipping fork() handlers")]


def test_a_fork_is_told_that_it_cannot_use_the_parents_client(service: FakeService) -> None:
    ended = python(FORK, service.target)
    assert (ended.returncode, unexpected(ended.stderr)) == (0, [])
    parent, child, *told, step = ended.stdout.splitlines()
    assert len(told) == 3
    assert all(f"opened in process {parent} and is used in process {child}" in text for text in told)
    assert step == "1"


@pytest.mark.parametrize("context", ["fork", "forkserver", "spawn"])
def test_a_data_loader_may_have_worker_processes(service: FakeService, context: str) -> None:
    ended = python(DATA_LOADER_WORKERS, service.target, context)
    assert (ended.returncode, unexpected(ended.stderr)) == (0, [])
    assert ended.stdout.split() == ["0", "1", "8", "9", "16", "17"] * 3


def test_a_program_may_exit_without_closing_its_client(service: FakeService) -> None:
    service.on_super_batch = lambda stream, received: stream.answer(received) if received.key == (0, 0) else None
    ended = python(EXIT_WITHOUT_CLOSING, service.target)
    assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (0, "[0, 1]", "")


def test_importing_the_client_loads_nothing_heavy() -> None:
    ended = python(LIST_HEAVY_MODULES)
    assert (ended.stdout.strip(), ended.stderr) == ("[]", "")
