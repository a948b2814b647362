"""Data-parallel training: one process per rank, each with its own client and its own shard of the data."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.client.fake_service import FakeService

RANK = """
import json
import sys
import torch
from torch.utils.data import DataLoader, IterableDataset
from preceptor import RunSpec, SelectionClient
from preceptor.torch import SelectingLoader

target, rank, ranks, examples = sys.argv[1], *map(int, sys.argv[2:])


class Shard(IterableDataset):
    # As DistributedSampler(drop_last=True): what does not divide by the ranks is left out, so that shards are equal.
    def __iter__(self):
        for row in range(rank, examples - examples % ranks, ranks):
            yield torch.full((4,), float(row)), torch.tensor(row)


with SelectionClient(target) as client:
    run = client.create_run(RunSpec("digits", "small_cnn"))
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
    sys.stdin.readline()
    loader = SelectingLoader(DataLoader(Shard(), 8), run, 3, rank=rank)
    print(json.dumps([[labels.tolist() for _, labels in loader] for epoch in range(2)]))
"""


@pytest.mark.parametrize("examples", [2 * 16 + 1, 2 * 18 + 1, 2 * 19])
def test_processes_with_equal_shards_get_equal_counts_of_their_own_examples(
    service: FakeService, examples: int
) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, service.target, str(rank), "2", str(examples)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        epochs = [json.loads(process.communicate("\n", timeout=60)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()

    rows = examples // 2
    whole, short = divmod(rows, 8)
    expected = whole + (short >= 3)
    for rank, (first, second) in enumerate(epochs):
        assert [len(labels) for labels in first] == [3] * expected
        assert [len(labels) for labels in second] == [3] * expected
        assert all(label % 2 == rank for labels in first + second for label in labels)
    steps = {received.key for received in service.received}
    assert steps == {(step, rank) for step in range(2 * expected) for rank in range(2)}
