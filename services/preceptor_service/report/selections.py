"""What a ledger tells of a run: over time, and by example. Pure reading of an exported file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from preceptor.ledger import per_candidate
from preceptor.runs import RunSpec
from preceptor_service.schedule import is_held_back

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the scores, as the report shows them."""

_PERIODS = 24
_SCORES_PER_PERIOD = 200_000
_ROWS_AT_ONCE = 64
_COUNTS_AT_ONCE = 2_000_000
_COLUMNS = ("step", "candidates", "learner_step", "fallback_reason", "scores", "indices")


@dataclass(frozen=True)
class Period:
    """Answers of neighbouring steps.

    Attributes:
        first_step, last_step: among them.
        answers: how many; `fallbacks` and `held_back` of them.
        quantiles: of the scores of all candidates, `QUANTILES`; None where none was scored, as the means.
        mean_offered, mean_selected: score of all candidates, and of those selected.
        mean_staleness_steps: of the learner copy behind the scores; None where there was none.
    """

    first_step: int
    last_step: int
    answers: int
    fallbacks: int
    held_back: int
    quantiles: tuple[float, ...] | None
    mean_offered: float | None
    mean_selected: float | None
    mean_staleness_steps: float | None


@dataclass(frozen=True)
class Examples:
    """Every example that was offered, N of them, in no order.

    Attributes:
        ids: as texts, `[N]`.
        offered, selected: how often, int64 `[N]`.
        expected: how often uniform draws would have selected it on average, float64 `[N]`.
        mean_score: float64 `[N]`, not a number where it was never scored.
    """

    ids: Any
    offered: NDArray[np.int64]
    selected: NDArray[np.int64]
    expected: NDArray[np.float64]
    mean_score: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.offered)

    def ranked(self) -> NDArray[np.int64]:
        """Returns positions, from what was selected most beyond chance to what was selected least.

        By selected − expected, then by mean score, then by id.
        """
        names = np.array(self.ids.to_pylist(), dtype=object)
        order = np.argsort(names, kind="stable")
        scores = np.where(np.isfinite(self.mean_score), self.mean_score, 0.0)
        keys = (-scores[order], -(self.selected - self.expected)[order])
        return order[np.lexsort(keys)]


@dataclass(frozen=True)
class Selections:
    """All that a report needs of a ledger.

    Attributes:
        first_step, last_step: that it holds.
        answers, candidates, selected: over all of them.
        fallbacks: by reason.
        held_back: answers of the control arm.
        periods: in order, at most 24.
        examples: None where the trainer sent no ids.
    """

    first_step: int
    last_step: int
    answers: int
    candidates: int
    selected: int
    fallbacks: dict[str, int]
    held_back: int
    periods: tuple[Period, ...]
    examples: Examples | None


def read_selections(file: Path, spec: RunSpec) -> Selections:
    """Returns what an exported ledger tells. Holds some rows of it in memory, scores of a period, and a count per id.

    Raises:
        ValueError, OSError: the file is no ledger, or holds no row.
    """
    with pq.ParquetFile(file) as ledger:
        steps = ledger.read(columns=["step"])["step"].to_numpy()
        if not len(steps):
            raise ValueError(f"{file} holds no row")
        bounds = _bounds(int(steps.min()), int(steps.max()))
        rows_of = np.bincount(np.searchsorted(bounds, steps, side="right") - 1, minlength=len(bounds))
        tallies = [_Tally(int(rows)) for rows in rows_of]
        examples, candidates, selected = _Counting(), 0, 0
        fallbacks = Counter[str]()
        for batch in ledger.iter_batches(_ROWS_AT_ONCE):
            for answer in _answers(batch):
                place = int(np.searchsorted(bounds, answer.step, side="right")) - 1
                tallies[place].add(answer, is_held_back(spec, answer.step))
                candidates += answer.candidates
                selected += len(answer.indices)
                if answer.fallback_reason is not None:
                    fallbacks[answer.fallback_reason] += 1
            examples.add(pa.Table.from_batches([batch]))
    periods = tuple(tally.period() for tally in tallies if tally.answers)
    return Selections(
        first_step=int(steps.min()),
        last_step=int(steps.max()),
        answers=len(steps),
        candidates=candidates,
        selected=selected,
        fallbacks=dict(sorted(fallbacks.items())),
        held_back=sum(period.held_back for period in periods),
        periods=periods,
        examples=examples.examples(),
    )


@dataclass(frozen=True)
class _Answer:
    step: int
    candidates: int
    staleness_steps: int | None
    fallback_reason: str | None
    scores: NDArray[np.float32]
    indices: NDArray[np.int64]


def _answers(batch: Any) -> Iterator[_Answer]:
    for at in range(len(batch)):
        row = {name: batch[name][at] for name in _COLUMNS}
        step, learner_step = row["step"].as_py(), row["learner_step"].as_py()
        yield _Answer(
            step=step,
            candidates=row["candidates"].as_py(),
            staleness_steps=None if learner_step is None else step - learner_step,
            fallback_reason=row["fallback_reason"].as_py(),
            scores=_values(row["scores"], np.float32),
            indices=_values(row["indices"], np.int64),
        )


def _values(scalar: Any, kind: type[Any]) -> NDArray[Any]:
    return np.empty(0, kind) if scalar.values is None else scalar.values.to_numpy(zero_copy_only=False)


def _bounds(first: int, last: int) -> NDArray[np.int64]:
    """Returns the first step of each period: equally many steps each, or one where there are few."""
    count = min(_PERIODS, last - first + 1)
    return np.array([first + (last - first + 1) * number // count for number in range(count)])


class _Tally:
    """What belongs to one period, of `rows` answers; of its scores at most `_SCORES_PER_PERIOD`, evenly taken."""

    def __init__(self, rows: int) -> None:
        self._most = max(1, _SCORES_PER_PERIOD // max(1, rows))
        self._steps: list[int] = []
        self._scores: list[NDArray[np.float32]] = []
        self._sums = np.zeros((2, 2))
        self._staleness: list[int] = []
        self.answers = 0
        self._fallbacks = 0
        self._held_back = 0

    def add(self, answer: _Answer, held_back: bool) -> None:
        self.answers += 1
        self._steps.append(answer.step)
        self._fallbacks += answer.fallback_reason is not None
        self._held_back += held_back
        if answer.staleness_steps is not None:
            self._staleness.append(answer.staleness_steps)
        if len(answer.scores):
            finite = answer.scores[np.isfinite(answer.scores)]
            self._scores.append(finite[:: -(-len(finite) // self._most) or 1])
            chosen = answer.scores[answer.indices]
            self._sums += [[finite.sum(dtype=float), len(finite)], [chosen.sum(dtype=float), len(chosen)]]

    def period(self) -> Period:
        scores = np.concatenate(self._scores) if self._scores else np.empty(0)
        is_scored = len(scores) > 0
        offered, selected = (total / count if count else None for total, count in self._sums.tolist())
        return Period(
            first_step=min(self._steps),
            last_step=max(self._steps),
            answers=self.answers,
            fallbacks=self._fallbacks,
            held_back=self._held_back,
            quantiles=tuple(np.quantile(scores, QUANTILES).tolist()) if is_scored else None,
            mean_offered=offered,
            mean_selected=selected,
            mean_staleness_steps=float(np.mean(self._staleness)) if self._staleness else None,
        )


class _Counting:
    """Counts per id, put together now and then, so that memory follows the number of ids and not of answers."""

    def __init__(self) -> None:
        self._parts: list[Any] = []
        self._rows = 0

    def add(self, table: Any) -> None:
        share = pc.divide(pc.list_value_length(table["indices"]).cast(pa.float64()), table["candidates"])
        unfolded = per_candidate(table)
        chance = np.repeat(share.to_numpy(), table["candidates"].to_numpy())
        for name in ("example_id", "example_id_text"):
            ids, scores = unfolded[name], pc.cast(unfolded["score"], pa.float64())
            counted = pa.table(
                {
                    "id": pc.cast(ids, pa.string()),
                    "offered": np.ones(len(ids), np.int64),
                    "selected": unfolded["drawn"].is_valid().cast(pa.int64()),
                    "expected": chance,
                    "score": pc.if_else(pc.is_finite(scores), scores, pa.scalar(None, pa.float64())),
                    "scored": pc.fill_null(pc.is_finite(scores), False).cast(pa.int64()),
                }
            ).filter(ids.is_valid())
            if len(counted):
                self._parts.append(_summed(counted))
                self._rows += len(self._parts[-1])
        if self._rows > _COUNTS_AT_ONCE:
            self._parts = [_summed(pa.concat_tables(self._parts))]
            self._rows = len(self._parts[0]) // 2  # let as many come again before the next time

    def examples(self) -> Examples | None:
        if not self._parts:
            return None
        counted = _summed(pa.concat_tables(self._parts)).sort_by("id")
        scored = counted["scored"].to_numpy()
        sums = counted["score"].fill_null(0.0).to_numpy()
        return Examples(
            ids=counted["id"].combine_chunks(),
            offered=counted["offered"].to_numpy(),
            selected=counted["selected"].to_numpy(),
            expected=counted["expected"].to_numpy(),
            mean_score=np.where(scored > 0, sums / np.maximum(scored, 1), np.nan),
        )


def _summed(table: Any) -> Any:
    """Returns a row per id; sums taken in the order of rows, so that the same ledger gives the same bits."""
    names = [name for name in table.schema.names if name != "id"]
    grouped = table.group_by("id", use_threads=False).aggregate([(name, "sum") for name in names])
    return grouped.rename_columns([name.removesuffix("_sum") for name in grouped.schema.names]).select(
        table.schema.names
    )
