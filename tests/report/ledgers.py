"""Ledgers of runs that never were, in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preceptor.runs import RunSpec
from preceptor_service.ledger.entries import Entry, to_table
from preceptor_service.run_store import RunRecord

SPEC = RunSpec("told", model="small_cnn", ledger=True, control_fraction=0.3, seed=1)


def entry(step: int, ids: Any, rows: int = 12, **fields: Any) -> Entry:
    """A step whose candidates have random scores, of which the four best were selected."""
    scores = np.random.default_rng(step).normal(size=rows).astype(np.float32)
    settings: dict[str, Any] = {
        "time_us": step,
        "step": step,
        "rank": 0,
        "candidates": rows,
        "learner_version": 1,
        "learner_step": step - step % 5,
        "reference_digest": None,
        "reference_fold_1_digest": None,
        "fallback_reason": None,
        "digest": b"d",
        "example_id": None if ids is None else pa.array(ids),
        "scores": scores,
        "indices": np.argsort(-scores)[:4],
        "weights": np.empty(0, np.float32),
    }
    return Entry(**{**settings, **fields})


def unscored(step: int, ids: Any, reason: str | None = None) -> Entry:
    """A step that was drawn uniformly."""
    nothing = np.empty(0, np.float32)
    return entry(step, ids, scores=nothing, indices=np.arange(4), fallback_reason=reason, learner_step=None)


def remembered(step: int, ids: Any, **fields: Any) -> Entry:
    """A super-batch that was put into the memory bank."""
    nothing = np.empty(0, np.int64)
    settings: dict[str, Any] = {"kind": "remember", "indices": nothing, "bank_operation": 1, **fields}
    return entry(step, ids, rows=len(ids), **settings)


def sampled(step: int, ids: Any, learner_steps: Any, **fields: Any) -> Entry:
    """A sub-batch of the memory bank, drawn from forty examples."""
    stamps = {"learner_step": None, "learner_steps": np.array(learner_steps), "candidates": 40}
    return remembered(step, ids, **{**stamps, "kind": "sample", **fields})


def write(path: Path, entries: Sequence[Entry], spec: RunSpec = SPEC) -> Path:
    """Writes a ledger as `preceptor ledger export` does."""
    pq.write_table(to_table(RunRecord(spec, 1.0, 16), entries), path)
    return path
