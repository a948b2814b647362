"""References: trained once, kept with their cost and the table of their losses, and charged to every run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from benchmarks.learning.claims import claimed
from benchmarks.learning.cost import Cost, CpuClock
from benchmarks.learning.data import Parts
from benchmarks.learning.data.parts import Examples, rows_of, take
from benchmarks.learning.measures import measure
from benchmarks.learning.models import ARCHITECTURES
from benchmarks.learning.settings import Data, Model, Reference, Training, digest
from benchmarks.learning.trainee import REGISTRY, Trainee, flops_of_forward, order
from preceptor_service.reference.losses_job import build_losses, score_here
from preceptor_service.reference.objectives import objective_of
from preceptor_service.reference.part_scorer import Layout, Scoring, read_reference
from preceptor_service.tasks import run_columns

TABLE = "losses"
"""Name of the table in its directory, as runs call it."""

_WEIGHTS, _COSTS, _POOL = "reference.safetensors", "costs.json", "pool.parquet"
_MICRO_BATCH_ROWS = 512
_PART_ROWS = 1 << 16


@dataclass(frozen=True)
class ReferenceKey:
    """What a reference depends on."""

    task: str
    contrast: str
    data: Data
    reference: Reference
    sub_batch_size: int
    seed: int


def reference_key(settings: Training, reference: Reference) -> ReferenceKey:
    """Returns what the reference of a run depends on."""
    return ReferenceKey(
        settings.task, settings.contrast, settings.data, reference, settings.sub_batch_size, settings.seed
    )


@dataclass(frozen=True)
class Trained:
    """A reference that is there.

    Attributes:
        state: its state dict.
        directory: holds `losses.parquet` where a table was asked for.
        training: what its training cost.
        table: what its losses on the pool cost; nothing where there is no table.
        quality: on the validation part, as `measures.measure`.
        forward_flops: of one example.
    """

    state: dict[str, torch.Tensor]
    directory: Path
    training: Cost
    table: Cost
    quality: dict[str, float]
    forward_flops: float


def trained(key: ReferenceKey, parts: Parts, work: Path) -> Trained:
    """Returns the reference, trained now unless it lies in `work` from before. Blocking."""
    directory = work / f"reference-{digest(key)}"
    with claimed(directory / "lock", waits=True):
        if not (directory / _COSTS).exists():
            (directory / _COSTS).with_suffix(".partial").write_text(json.dumps(_train(key, parts, directory)))
            (directory / _COSTS).with_suffix(".partial").rename(directory / _COSTS)
    costs = json.loads((directory / _COSTS).read_text())
    return Trained(
        state=load_file(directory / _WEIGHTS),
        directory=directory,
        training=Cost(**costs["training"]),
        table=Cost(**costs["table"]),
        quality=costs["quality"],
        forward_flops=costs["forward_flops"],
    )


def _train(key: ReferenceKey, parts: Parts, directory: Path) -> dict[str, Any]:
    """Trains, writes weights and table into `directory`, and returns what it cost and how good it is."""
    settings = key.reference
    examples = parts.clean if settings.trained_on == "clean" else parts.pool
    clock = CpuClock()
    # The seed is none of the learner's or the online model's.
    trainee = Trainee(
        settings.model, objective_of(key.task, key.contrast), settings.updates, settings.learning_rate, key.seed + 2_000
    )
    for rows in order(rows_of(examples), key.sub_batch_size, settings.updates, key.seed + 2_000):
        trainee.update(take(examples, rows))
    training = Cost(trainee.flops, clock.cpu_s)
    # Weights that two layers share are written twice: a file of tensors knows no sharing.
    save_file({name: value.clone() for name, value in trainee.model.state_dict().items()}, directory / _WEIGHTS)
    flops = flops_of_forward(trainee.model, parts.pool)
    table = Cost()
    if settings.is_table:
        cpu_s = _build_table(key.task, settings.model, parts.pool, directory)
        table = Cost(flops * rows_of(parts.pool), cpu_s)
    return {
        "training": asdict(training),
        "table": asdict(table),
        "quality": measure(key.task, trainee.model, parts.validation),
        "forward_flops": flops,
    }


def _build_table(task: str, model: Model, pool: Examples, directory: Path) -> float:
    """Scores the pool as `preceptor build-reference-losses` does; returns processor seconds.

    The data set of a user lies there already, so writing it is not charged.
    """
    registry = REGISTRY
    columns = [column.name for column in run_columns(task, registry.outline(model.architecture, model.config))]
    arrays = {name: pool[name].flatten(1) if pool[name].dim() > 1 else pool[name] for name in (*columns, "example_id")}
    pq.write_table(pa.table({name: _arrow(values) for name, values in arrays.items()}), directory / _POOL)
    clock = CpuClock()
    reference = read_reference(directory / _WEIGHTS, task, model.architecture, model.config, registry)
    build_losses(
        reference, [directory / _POOL], Layout("example_id", {}),
        Scoring(_MICRO_BATCH_ROWS, "cpu", 1, ARCHITECTURES), _PART_ROWS, directory / f"{TABLE}.parquet",
        score_here, lambda: False, lambda *_: None,
    )  # fmt: skip
    spent_s = clock.cpu_s
    (directory / _POOL).unlink()
    return spent_s


def _arrow(values: torch.Tensor) -> Any:
    """Returns a column of numbers, or of lists of one length."""
    if values.dim() == 1:
        return pa.array(values.numpy())
    return pa.FixedSizeListArray.from_arrays(pa.array(values.numpy().reshape(-1)), values.shape[1])
