"""`BankReplay`: a memory bank made again from its operations in a ledger, and each of its samples drawn once more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from preceptor.errors import PreceptorError
from preceptor.runs import RunSpec
from preceptor_service.drawing import Draw
from preceptor_service.memory_bank.bank import (
    BANK_DOMAIN,
    Bank,
    Key,
    Operation,
    Put,
    Sample,
    done,
    sample,
    sample_name,
)
from preceptor_service.memory_bank.ids import as_ids
from preceptor_service.selectors import Selector


class BankRow(NamedTuple):
    """A row of kind `remember` or `sample`: its columns as Arrow scalars."""

    number: int
    columns: dict[str, Any]


class Found(NamedTuple):
    """What came of a row: what differs, if anything; `is_known` unless operations before it are missing."""

    row: BankRow
    difference: str | None
    is_known: bool = True


class BankReplay:
    """A run's bank from its first operation on, done in the order of their numbers, in which rows need not come.

    What a bank holds follows from all that was done to it: after the first number that is missing nothing can be drawn
    again. Holds rows only until those before them have come.

    Args:
        spec: of the run, which has a memory bank.
        selector: the run's.
        numbers: of all operations that will come.
    """

    def __init__(self, spec: RunSpec, selector: Selector, numbers: NDArray[np.int64]) -> None:
        if spec.memory_bank is None:
            raise ValueError(f"run {spec.run_id!r} has no memory bank, and operations of one")
        self._spec, self._selector, self._settings = spec, selector, spec.memory_bank
        present = np.unique(numbers)
        gaps = np.flatnonzero(present != np.arange(1, len(present) + 1))
        self._last = int(gaps[0]) if len(gaps) else len(present)
        self._bank = Bank()
        self._waiting: dict[int, BankRow] = {}
        self._misfit: int | None = None

    def add(self, row: BankRow) -> Iterator[Found]:
        """Takes a row; yields what came of it and of those that waited for it, as far as their turn has come."""
        if not 1 <= row.number <= self._last:
            yield Found(row, None, is_known=False)
        elif row.number <= self._bank.number or row.number in self._waiting:
            yield Found(row, f"operation {row.number} of the memory bank is there twice")
        else:
            self._waiting[row.number] = row
        while (due := self._waiting.pop(self._bank.number + 1, None)) is not None:
            yield Found(due, self._done(due))

    def _done(self, row: BankRow) -> str | None:
        rows = self._bank.rows
        try:
            if self._misfit is not None:
                return f"it follows operation {self._misfit} of the memory bank, which does not fit"
            operation = _operation(row.columns)
            difference = None if isinstance(operation, Put) else self._difference(operation)
            try:
                rows = done(self._bank, operation, self._settings)
            except (PreceptorError, ValueError) as error:
                self._misfit = row.number
                difference = difference or f"it does not fit what the memory bank held: {error}"
            return difference
        except (PreceptorError, ValueError, TypeError, IndexError, OverflowError) as error:
            self._misfit = row.number
            return f"cannot be drawn again: {error}"
        finally:
            self._bank = Bank(rows, row.number)

    def _difference(self, recorded: Sample) -> str | None:
        draw = Draw(recorded.key.step, recorded.key.rank, len(recorded.ids), BANK_DOMAIN)
        again = sample(self._bank, self._spec, self._selector, self._settings, draw).operation
        if not np.array_equal(again.ids, recorded.ids):
            place = int(np.flatnonzero(again.ids != recorded.ids)[0])
            return f"draw {place} was example {_named(recorded.ids[place])}, and is {_named(again.ids[place])} now"
        for name, what in (
            ("scores", "the scores"),
            ("learner_versions", "the learner versions"),
            ("learner_steps", "the steps of the learner versions"),
            ("weights", "the importance weights"),
        ):
            if getattr(again, name).tobytes() != getattr(recorded, name).tobytes():
                return f"{what} differ"
        if again.candidates != recorded.candidates:
            return f"it was drawn from {recorded.candidates} examples, and is from {again.candidates} now"
        return None


def _operation(columns: dict[str, Any]) -> Operation:
    """Returns the operation of a row.

    Raises:
        PreceptorError, ValueError, TypeError: the row cannot be that of one.
    """
    step, rank, kind = (columns[name].as_py() for name in ("step", "rank", "kind"))
    named = next((columns[name].values for name in ("example_id", "example_id_text") if columns[name].is_valid), None)
    if named is None or named.null_count:
        raise ValueError("it has no ids")
    ids, scores = as_ids(named), _values(columns["scores"], np.float32)
    if not len(ids) or len(scores) != len(ids):
        raise ValueError(f"it has {len(scores)} scores for {len(ids)} ids")
    examples = columns["bank_examples"].as_py()
    if kind == "remember":
        version, at = (columns[name].as_py() or 0 for name in ("learner_version", "learner_step"))
        return Put(
            Key("put", step, rank), "", ids, scores, version, at, np.zeros(len(ids), np.uint64), examples=examples
        )
    if kind != "sample":
        raise ValueError(f"its kind is {kind!r}")
    stamps = [_stamps(columns[name], len(ids)) for name in ("learner_versions", "learner_steps")]
    weights, candidates = _values(columns["weights"], np.float32), columns["candidates"].as_py()
    name = sample_name(Draw(step, rank, len(ids), BANK_DOMAIN))
    return Sample(*name, ids, scores, stamps[0], stamps[1], weights, examples, candidates)


def _stamps(scalar: Any, count: int) -> NDArray[np.int64]:
    return _values(scalar, np.int64) if scalar.is_valid else np.zeros(count, np.int64)


def _values(scalar: Any, kind: type[Any]) -> NDArray[Any]:
    """Returns the values of a list, or none for a null."""
    return scalar.values.to_numpy(zero_copy_only=False).astype(kind) if scalar.is_valid else np.empty(0, kind)


def _named(example_id: Any) -> str:
    return repr(example_id.decode()) if isinstance(example_id, bytes) else str(example_id)
