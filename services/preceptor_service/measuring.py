"""What one scorer does on this machine, and what a run's models and candidates take. Called by `preceptor size`."""

from __future__ import annotations

import hashlib
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save

from preceptor.runs import RunSpec
from preceptor_service.columns import ATTENTION_MASK, ColumnSpec
from preceptor_service.method_registry import MethodRegistry
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.run_store import RunRecord, RunStore
from preceptor_service.scoring.engine import ScoringEngine
from preceptor_service.scoring.run_models import architecture_of, scoring_models
from preceptor_service.super_batch import SuperBatch
from preceptor_service.tasks import run_columns
from preceptor_service.weight_store import WeightStore
from preceptor_service.weight_versions import ROLES, Role

_MODEL_BYTES = 1 << 40


def weights_bytes(spec: RunSpec, role: Role) -> int:
    """Returns the bytes that a run's model takes in a scorer; 0 where its score rule needs no such model.

    Of `reference`: of both where the run has two.

    Raises:
        InvalidRunError: unknown model, score rule or setting.
    """
    rule = MethodRegistry().rule(spec.score)
    if not (rule.needs_learner if role == "learner" else rule.needs_reference):
        return 0
    outline = ArchitectureRegistry().outline(*architecture_of(spec, role))
    each = sum(tensor.nbytes for tensor in (*outline.parameters(), *outline.buffers()))
    return 2 * each if role == "reference" and spec.cross_reference else each


def candidate_bytes(spec: RunSpec) -> int:
    """Returns the bytes of one candidate on the wire.

    Raises:
        InvalidRunError: unknown task, model or setting.
    """
    return sum(column.row_bytes for column in _columns(spec))


def measure_candidates_per_second(
    spec: RunSpec,
    rows: int,
    micro_batch_rows: int,
    seconds: float,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
) -> tuple[float, str]:
    """Returns what one engine scores per second of a run's super-batches, and the device it did it on.

    Initial weights and random candidates: the time of a forward pass does not depend on values. Blocking, for
    `seconds` and at least one super-batch, after one that is not counted. Sets torch's threads for this process.

    Args:
        spec: the run; its task, model and score rule count.
        rows: B of one super-batch.
        micro_batch_rows: rows of one forward pass.
        seconds: how long to measure.
        device: as `scorer.device`.
        threads: as `scorer.threads`; None leaves torch's setting.

    Raises:
        ValueError: there is no such device.
        PreceptorError: the run cannot be scored: unknown model or setting, too little memory.
    """
    rule = MethodRegistry().rule(spec.score)
    super_batch = _random_super_batch(_columns(spec), rows)
    with tempfile.TemporaryDirectory(prefix="preceptor-size-") as folder:
        RunStore(Path(folder)).create(RunRecord(spec, time.time(), micro_batch_rows))
        weights = WeightStore(Path(folder), keep_versions=2, max_bytes=_MODEL_BYTES)
        roles = ROLES if spec.cross_reference else ROLES[:2]
        for role in roles:
            _push_initial(weights, spec, role)
        models = scoring_models(spec, rule, *(weights.head(spec.run_id, role) for role in roles))
        engine = ScoringEngine(weights, ArchitectureRegistry(), device, threads, _MODEL_BYTES)
        batches = list(super_batch.micro_batches(micro_batch_rows))
        for batch in batches:
            engine.losses(models, batch)
        candidates, started = 0, time.perf_counter()
        while candidates == 0 or time.perf_counter() - started < seconds:
            for batch in batches:
                engine.losses(models, batch)
            candidates += rows
        return candidates / (time.perf_counter() - started), engine.device


def _columns(spec: RunSpec) -> tuple[ColumnSpec, ...]:
    return run_columns(spec.task, ArchitectureRegistry().outline(*architecture_of(spec, "learner")))


def _push_initial(weights: WeightStore, spec: RunSpec, role: Role) -> None:
    state = ArchitectureRegistry().build(*architecture_of(spec, role)).state_dict()
    # Each role has other weights: equal ones would be one model, scored once.
    scale = 0.5 ** ROLES.index(role)
    state = {name: value * scale if value.is_floating_point() else value for name, value in state.items()}
    data = save({name: value.contiguous() for name, value in state.items()})
    with weights.stage(len(data)) as staged:
        staged.write(data)
        staged.seal(hashlib.sha256(data).digest())
        weights.commit(spec.run_id, role, staged, step=0, base_version=0)


def _random_super_batch(columns: tuple[ColumnSpec, ...], rows: int) -> SuperBatch:
    random = np.random.default_rng(0)
    return SuperBatch({column.name: _random_column(column, rows, random) for column in columns}, rows)


def _random_column(column: ColumnSpec, rows: int, random: np.random.Generator) -> NDArray[np.generic]:
    shape = (rows, *column.shape)
    if column.name == ATTENTION_MASK:  # texts of full length take longest
        return np.ones(shape, column.dtype)
    if column.element_type == "float":
        return random.standard_normal(shape, dtype=np.float32)
    return random.integers(0, column.below or 256, shape, dtype=column.dtype)
