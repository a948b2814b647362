"""`Bank`: the state of a run's memory bank, which is what its operations made of it. Pure; knows no store.

An operation puts a super-batch or samples a sub-batch. It is named by its kind, step and rank, and happens once: the
bank knows which ones it did, up to a bound, and refuses those that it may have forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from preceptor.errors import BankShortError, InvalidSuperBatchError, StepExistsError, StepForgottenError
from preceptor.quoting import quoted
from preceptor.runs import MemoryBank, RunSpec
from preceptor_service.drawing import Draw, drawn_by_score, drawn_uniformly
from preceptor_service.memory_bank.ids import Ids, are_texts, as_texts
from preceptor_service.memory_bank.rows import Rows, changed, fresh, no_rows, remembered, sampled
from preceptor_service.schedule import count_by_score
from preceptor_service.selectors import Selector

Kind = Literal["put", "sample"]

BANK_DOMAIN = 1
"""Of the random stream, which `randomness.uniforms` keeps apart from that of super-batches."""

_RECORD_BYTES = 320
"""About what the bank remembers of an operation takes in memory."""


class Key(NamedTuple):
    """What names an operation within a run."""

    kind: Kind
    step: int
    rank: int


class Record(NamedTuple):
    """What the bank remembers of an operation: its number, what it was asked for, and its size in the store."""

    number: int
    identity: str
    total_bytes: int


@dataclass(frozen=True)
class Put:
    """A super-batch was put in.

    Attributes:
        key: names it.
        identity: digest of the super-batch, in hexadecimal.
        ids: `[B]`.
        scores: float32 `[B]`, not a number where a loss was not finite: those were not put in.
        learner_version, learner_step: of the learner copy behind the scores; 0 where there is none.
        contents: uint64 `[B]`, `SuperBatch.contents`; 0 where an older gateway put them in.
        evicted: examples that left to make room.
        examples: that the bank held then.
    """

    key: Key
    identity: str
    ids: Ids
    scores: NDArray[np.float32]
    learner_version: int
    learner_step: int
    contents: NDArray[np.uint64]
    evicted: int = 0
    examples: int = 0


@dataclass(frozen=True)
class Sample:
    """A sub-batch was sampled.

    Attributes:
        key: names it.
        identity: b, in decimal.
        ids: `[b]`, in the order drawn.
        scores: float32 `[b]`.
        learner_versions, learner_steps: int64 `[b]`, of the learner copies behind them; 0 where there is none.
        weights: importance weights, float32 `[b]`; empty where the selector has none.
        examples: that the bank held then.
        candidates: examples that it was drawn from: those that were not too stale; 0 where a service that did not keep
            that drew it.
    """

    key: Key
    identity: str
    ids: Ids
    scores: NDArray[np.float32]
    learner_versions: NDArray[np.int64]
    learner_steps: NDArray[np.int64]
    weights: NDArray[np.float32]
    examples: int = 0
    candidates: int = 0


Operation = Put | Sample
OperationT = TypeVar("OperationT", Put, Sample)


@dataclass(frozen=True)
class Bank:
    """What a run's bank holds after its first `number` operations.

    Attributes:
        rows: the examples.
        number: of the last operation; 0 for none.
        records: by key, of the last operations without a gap, oldest first.
        forgotten: by kind and rank, the highest step among those before them.
    """

    rows: Rows = field(default_factory=no_rows)
    number: int = 0
    records: Mapping[Key, Record] = field(default_factory=dict)
    forgotten: Mapping[tuple[Kind, int], int] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """Bytes in memory, about."""
        return self.rows.total_bytes + _RECORD_BYTES * (len(self.records) + len(self.forgotten))

    @property
    def first_record(self) -> int:
        """Number of the first operation that it remembers."""
        return self.number - len(self.records) + 1

    def find(self, key: Key, identity: str) -> Record | None:
        """Returns the operation of that name, or None where it is still to be done.

        Raises:
            StepExistsError: it was asked for something else.
            StepForgottenError: it may have been done; that is forgotten.
        """
        record = self.records.get(key)
        if record is None:
            if key.step <= self.forgotten.get((key.kind, key.rank), -1):
                raise forgotten(key, self.forgotten[key.kind, key.rank])
            return None
        if record.identity != identity:
            what = "put other candidates in" if key.kind == "put" else f"sample {record.identity} examples"
            raise StepExistsError(
                f"step {key.step} of rank {key.rank} was used to {what}; continue at a later step, or use a new run"
            )
        return record

    def after(self, operation: Operation, rows: Rows, total_bytes: int, limits: KeepLimits) -> Bank:
        """Returns the bank once it did `operation`, which left `rows` and takes `total_bytes` in the store."""
        records, before = dict(self.records), dict(self.forgotten)
        records[operation.key] = Record(self.number + 1, operation.identity, total_bytes)
        kept_bytes = sum(record.total_bytes for record in records.values())
        while len(records) > limits.operations or (kept_bytes > limits.total_bytes and len(records) > 1):
            oldest = next(iter(records))
            kept_bytes -= records.pop(oldest).total_bytes
            horizon = oldest.kind, oldest.rank
            before[horizon] = max(oldest.step, before.get(horizon, -1))
        return Bank(rows, self.number + 1, records, before)


class KeepLimits(NamedTuple):
    """How many operations, and bytes of them in the store, a bank remembers; always the last one."""

    operations: int
    total_bytes: int


class Done(NamedTuple, Generic[OperationT]):
    """An operation that was worked out, and the examples that it leaves."""

    operation: OperationT
    rows: Rows


def put(bank: Bank, asked: Put, settings: MemoryBank) -> Done[Put]:
    """Returns `asked` as done to `bank`.

    Raises:
        InvalidSuperBatchError: the bank holds ids of the other kind, or one of them with other content.
    """
    if len(bank.rows) and are_texts(bank.rows.ids) != are_texts(asked.ids):
        held, given = ("whole numbers", "texts") if are_texts(asked.ids) else ("texts", "whole numbers")
        raise InvalidSuperBatchError(f"the bank holds examples whose ids are {held}, and these are {given}")
    other = changed(bank.rows, asked.ids, asked.contents)
    if len(other):
        id_ = as_texts(asked.ids[other[:1]])[0] if are_texts(asked.ids) else int(asked.ids[other[0]])
        more = f", and so {len(other) - 1} more rows" if len(other) > 1 else ""
        raise InvalidSuperBatchError(
            f"example_id {quoted(id_)} in row {other[0]} has other content than the example of that id in the bank"
            f"{more}; give every example an id of its own, and views of one example too"
        )
    return _put(bank, asked, settings)


def _put(bank: Bank, asked: Put, settings: MemoryBank) -> Done[Put]:
    rows, evicted = remembered(
        bank.rows,
        asked.ids,
        asked.scores,
        asked.contents,
        asked.learner_version,
        asked.learner_step,
        bank.number + 1,
        settings.capacity,
    )
    return Done(replace(asked, evicted=evicted, examples=len(rows)), rows)


def sample(bank: Bank, spec: RunSpec, selector: Selector, settings: MemoryBank, draw: Draw) -> Done[Sample]:
    """Returns a sub-batch drawn from what is fresh enough in `bank`, by the run's selector and schedule.

    Candidates are the examples by rising id, so that a draw depends on what the bank holds and not on how it came
    there.

    Raises:
        BankShortError: there are fewer than are to be sampled.
    """
    rows = bank.rows
    eligible = fresh(rows, draw.step, settings.max_staleness_steps)
    if len(eligible) < draw.sub_batch_size:
        raise BankShortError(_what_is_there(spec.run_id, len(rows), len(eligible), settings, draw))
    by_score = count_by_score(spec, draw.step, draw.sub_batch_size)
    if by_score:
        drawn, weights = drawn_by_score(spec, selector, rows.scores[eligible], draw, by_score)
    else:
        drawn, weights = drawn_uniformly(spec, selector, len(eligible), draw)
    chosen = eligible[drawn]
    left = sampled(rows, rows.ids[chosen], settings.max_times_sampled)
    operation = Sample(
        *sample_name(draw),
        rows.ids[chosen],
        rows.scores[chosen],
        rows.learner_versions[chosen],
        rows.learner_steps[chosen],
        weights,
        len(left),
        len(eligible),
    )
    return Done(operation, left)


def sample_name(draw: Draw) -> tuple[Key, str]:
    """Returns key and identity of the operation that draws this."""
    return Key("sample", draw.step, draw.rank), str(draw.sub_batch_size)


def done(bank: Bank, operation: Operation, settings: MemoryBank) -> Rows:
    """Returns the examples that `operation`, which somebody did to `bank`, leaves.

    Raises:
        ValueError: it was not done to this bank.
    """
    if isinstance(operation, Put):
        rows = _put(bank, operation, settings).rows  # whoever did it may have known less of what was there
    else:
        rows = sampled(bank.rows, operation.ids, settings.max_times_sampled)
    if len(rows) != operation.examples:
        raise ValueError(f"it left {operation.examples} examples, and leaves {len(rows)} here")
    return rows


def forgotten(key: Key, up_to: int) -> StepForgottenError:
    """Returns what is said of an operation that may have been done long ago."""
    what = "put in" if key.kind == "put" else "sampled"
    return StepForgottenError(
        f"step {key.step} of rank {key.rank} may have been {what} already, and what the bank answered up to step "
        f"{up_to} is no longer kept (memory_bank.keep_operations, memory_bank.keep_bytes); continue at a later step, "
        "or use a new run"
    )


def _what_is_there(run_id: str, held: int, eligible: int, settings: MemoryBank, draw: Draw) -> str:
    young = (
        f", {eligible} of them with a score no older than max_staleness_steps {settings.max_staleness_steps} at step "
        f"{draw.step}"
        if settings.max_staleness_steps is not None
        else ""
    )
    return (
        f"the bank of run {run_id!r} holds {held} examples{young}, and {draw.sub_batch_size} were to be sampled; "
        "remember more candidates first, or sample fewer"
    )
