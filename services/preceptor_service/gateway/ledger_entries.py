"""What a ledger keeps of answers and of operations of memory banks. Called by `Recorder`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa

from preceptor.v1 import selection_pb2
from preceptor_service.ledger.entries import Entry
from preceptor_service.memory_bank.bank import Put, Sample
from preceptor_service.memory_bank.bank_store import Answer
from preceptor_service.memory_bank.ids import Ids, are_texts, as_texts
from preceptor_service.runs import Pinned
from preceptor_service.selected import Selected

_NO_INDICES = np.empty(0, np.int64)
_NO_WEIGHTS = np.empty(0, np.float32)


def selected_entry(header: selection_pb2.SuperBatchHeader, selected: Selected) -> Entry:
    """Returns what is kept of an answered super-batch."""
    pinned = selected.pinned if len(selected.scores) else None  # nothing is behind an unscored draw
    learner = pinned.learner if pinned else None
    return Entry(
        time_us=_now_us(),
        step=header.step,
        rank=header.rank,
        candidates=header.row_count,
        learner_version=learner.version if learner else None,
        learner_step=learner.step if learner else None,
        **_references(pinned),
        fallback_reason=selected.fallback,
        digest=header.digest,
        example_id=selected.example_id,
        scores=selected.scores,
        indices=selected.indices,
        weights=selected.weights,
    )


def remembered_entry(answer: Answer[Put], pinned: Pinned) -> Entry:
    """Returns what is kept of a super-batch that was put into a memory bank."""
    put = answer.operation
    return Entry(
        time_us=_now_us(),
        step=put.key.step,
        rank=put.key.rank,
        candidates=len(put.ids),
        learner_version=put.learner_version or None,
        learner_step=put.learner_step if put.learner_version else None,
        **_references(pinned),
        fallback_reason=None,
        digest=bytes.fromhex(put.identity),
        example_id=_ids(put.ids),
        scores=put.scores,
        indices=_NO_INDICES,
        weights=_NO_WEIGHTS,
        kind="remember",
        bank_operation=answer.number,
        bank_examples=put.examples,
    )


def sampled_entry(answer: Answer[Sample]) -> Entry:
    """Returns what is kept of a sub-batch that was sampled from a memory bank."""
    sample = answer.operation
    has_learner = bool(sample.learner_versions.any())
    return Entry(
        time_us=_now_us(),
        step=sample.key.step,
        rank=sample.key.rank,
        candidates=sample.candidates,
        learner_version=None,
        learner_step=None,
        **_references(None),
        fallback_reason=None,
        digest=None,
        example_id=_ids(sample.ids),
        scores=sample.scores,
        indices=_NO_INDICES,
        weights=sample.weights,
        kind="sample",
        bank_operation=answer.number,
        bank_examples=sample.examples,
        learner_versions=sample.learner_versions if has_learner else _NO_INDICES,
        learner_steps=sample.learner_steps if has_learner else _NO_INDICES,
    )


def _references(pinned: Pinned | None) -> dict[str, Any]:
    found = (pinned.models.reference, pinned.models.reference_fold_1) if pinned else (None, None)
    digests = (None if reference is None else reference.digest for reference in found)
    return dict(zip(("reference_digest", "reference_fold_1_digest"), digests, strict=True))


def _ids(ids: Ids) -> Any:
    return pa.array(as_texts(ids), pa.string()) if are_texts(ids) else pa.array(ids)


def _now_us() -> int:
    return time.time_ns() // 1000
