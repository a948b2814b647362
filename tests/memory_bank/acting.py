"""Puts and samples as the gateway does them, on banks that tests open."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from preceptor import MemoryBank, RunSpec
from preceptor.errors import BankShortError
from preceptor_service.config import MemoryBankConfig
from preceptor_service.drawing import Draw
from preceptor_service.memory_bank.bank import BANK_DOMAIN, Bank, Key, Put, Sample, put, sample, sample_name
from preceptor_service.memory_bank.bank_store import Answer, OpenBank
from preceptor_service.memory_bank.ids import are_texts, as_ids, as_texts
from preceptor_service.method_registry import MethodRegistry
from preceptor_service.run_store import RunRecord, RunStore
from preceptor_service.storage import Storage

FOREVER = float("inf")
METHODS = MethodRegistry()


def spec(run_id: str = "run", settings: MemoryBank | None = None, **others: Any) -> RunSpec:
    return RunSpec(run_id, model="small_cnn", memory_bank=settings or MemoryBank(1000), **others)


def record_of(storage: Storage, run: RunSpec | None = None, create_time_s: float = 1.0) -> RunRecord:
    return RunStore(storage).create(RunRecord(run or spec(), create_time_s, 16))


def opened(storage: Storage, record: RunRecord, config: MemoryBankConfig | None = None, **others: Any) -> OpenBank:
    return OpenBank(storage, record, config or MemoryBankConfig(), **others)


def asked(
    step: int,
    ids: Sequence[int] | Sequence[str],
    scores: Sequence[float],
    rank: int = 0,
    learner_version: int = 1,
    learner_step: int = 0,
    contents: Sequence[int] | None = None,
) -> Put:
    """A super-batch with these scores; of contents that are one to each id, unless said otherwise."""
    named = as_ids(pa.array(ids, pa.string() if ids and isinstance(ids[0], str) else pa.int64()))
    identity = f"{zlib.crc32(repr((ids, scores)).encode()):x}"
    array = np.array(scores, np.float32)
    digests = np.array(contents or [zlib.crc32(repr(id_).encode()) + 1 for id_ in ids], np.uint64)
    return Put(Key("put", step, rank), identity, named, array, learner_version, learner_step, digests)


def settings_of(record: RunRecord) -> MemoryBank:
    assert record.spec.memory_bank is not None
    return record.spec.memory_bank


def remember(bank: OpenBank, record: RunRecord, wanted: Put) -> Answer[Put]:
    settings = settings_of(record)
    return bank.operate(wanted.key, wanted.identity, Put, lambda known: put(known, wanted, settings), FOREVER)


def draw_from(bank: OpenBank, record: RunRecord, count: int, step: int, rank: int = 0) -> Answer[Sample]:
    settings, wanted = settings_of(record), Draw(step, rank, count, BANK_DOMAIN)
    selector = METHODS.selector(record.spec.selector)
    key, identity = sample_name(wanted)
    return bank.operate(
        key, identity, Sample, lambda known: sample(known, record.spec, selector, settings, wanted), FOREVER
    )


def draw_or_none(bank: OpenBank, record: RunRecord, count: int, step: int, rank: int = 0) -> list[Any] | None:
    """The ids; None where there are too few."""
    try:
        return names(draw_from(bank, record, count, step, rank).operation)
    except BankShortError:
        return None


def names(operation: Put | Sample) -> list[Any]:
    return as_texts(operation.ids) if are_texts(operation.ids) else operation.ids.tolist()


def contents(bank: Bank) -> dict[Any, tuple[float, int, int, int, int]]:
    """Everything that is known of each example, but the digest of its content."""
    rows = bank.rows
    ids: list[Any] = as_texts(rows.ids) if are_texts(rows.ids) else rows.ids.tolist()
    columns = (rows.scores, rows.learner_versions, rows.learner_steps, rows.put_by, rows.times_sampled)
    values = zip(*(column.tolist() for column in columns), strict=True)
    return dict(zip(ids, values, strict=True))


def same(here: Bank, there: Bank) -> bool:
    """Whether two gateways know the same."""
    return (
        contents(here) == contents(there)
        and here.rows.contents.tolist() == there.rows.contents.tolist()
        and here.number == there.number
        and dict(here.records) == dict(there.records)
        and dict(here.forgotten) == dict(there.forgotten)
    )
