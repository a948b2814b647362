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

from preceptor.ledger import per_candidate, rows_unfolded
from preceptor.runs import RunSpec
from preceptor_service.schedule import is_held_back

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the scores, as the report shows them."""

_PERIODS = 24
_SCORES_PER_PERIOD = 200_000
_ROWS_AT_ONCE = 64
_COUNTS_AT_ONCE = 2_000_000
_COLUMNS = ("step", "kind", "candidates", "learner_step", "learner_steps", "fallback_reason", "scores", "indices")


@dataclass(frozen=True)
class Period:
    """Answers of neighbouring steps, and what a memory bank was offered at these.

    Attributes:
        first_step, last_step: among them.
        answers: how many; `fallbacks` and `held_back` of them.
        quantiles: of the scores of all candidates, `QUANTILES`; None where none was scored, as the means.
        mean_offered, mean_selected: score of all candidates, and of those selected, by score where from a memory bank.
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
    """Every example that was offered or sampled, N of them, in no order.

    Attributes:
        ids: as texts, `[N]`.
        offered, selected: how often, int64 `[N]`; what a memory bank remembers is offered, what it samples selected.
        expected: how often uniform draws would have selected it on average, float64 `[N]`. What a memory bank held at a
            sample is not written down: of all that it sampled each offer to it is given the same share.
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
        answers, candidates, selected: over all of them; sub-batches sampled from a memory bank are answers, what it
            remembers are candidates.
        remembered: super-batches that were put into the memory bank.
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
    remembered: int
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
        examples, candidates, selected, remembered = _Counting(), 0, 0, 0
        fallbacks = Counter[str]()
        for batch in ledger.iter_batches(_ROWS_AT_ONCE):
            for row in _rows(batch):
                place = int(np.searchsorted(bounds, row.step, side="right")) - 1
                tallies[place].add(row, row.is_answer and is_held_back(spec, row.step))
                candidates += row.offered
                selected += row.selected
                remembered += not row.is_answer
                if row.fallback_reason is not None:
                    fallbacks[row.fallback_reason] += 1
            examples.add(pa.Table.from_batches([batch]))
    periods = tuple(tally.period() for tally in tallies if tally.rows)
    return Selections(
        first_step=int(steps.min()),
        last_step=int(steps.max()),
        answers=len(steps) - remembered,
        candidates=candidates,
        selected=selected,
        remembered=remembered,
        fallbacks=dict(sorted(fallbacks.items())),
        held_back=sum(period.held_back for period in periods),
        periods=periods,
        examples=examples.examples(),
    )


@dataclass(frozen=True)
class _Row:
    """A super-batch, answered or put into a memory bank, or a sample of that, which was offered nothing."""

    step: int
    kind: str
    offered: int
    selected: int
    staleness_steps: float | None
    fallback_reason: str | None
    scores: NDArray[np.float32]
    chosen: NDArray[np.float32]

    @property
    def is_answer(self) -> bool:
        return self.kind != "remember"


def _rows(batch: Any) -> Iterator[_Row]:
    for at in range(len(batch)):
        row = {name: batch[name][at] for name in _COLUMNS}
        step, kind, learner_step = row["step"].as_py(), row["kind"].as_py(), row["learner_step"].as_py()
        scores, indices = _values(row["scores"], np.float32), _values(row["indices"], np.int64)
        is_sample, learner_steps = kind == "sample", _values(row["learner_steps"], np.int64)
        if is_sample:
            staleness = float(step - learner_steps.mean()) if len(learner_steps) else None
        else:  # how old scores are matters when they are trained on
            staleness = None if learner_step is None or kind != "select" else float(step - learner_step)
        yield _Row(
            step=step,
            kind=kind,
            offered=0 if is_sample else row["candidates"].as_py(),
            selected=len(scores) if is_sample else len(indices),
            staleness_steps=staleness,
            fallback_reason=row["fallback_reason"].as_py(),
            scores=scores[:0] if is_sample else scores,
            chosen=scores if is_sample else scores[indices] if len(scores) else scores,
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
        self._staleness: list[float] = []
        self.rows = 0
        self._answers = 0
        self._fallbacks = 0
        self._held_back = 0

    def add(self, row: _Row, held_back: bool) -> None:
        self.rows += 1
        self._answers += row.is_answer
        self._steps.append(row.step)
        self._fallbacks += row.fallback_reason is not None
        self._held_back += held_back
        if row.staleness_steps is not None:
            self._staleness.append(row.staleness_steps)
        if len(row.scores):
            finite = row.scores[np.isfinite(row.scores)]
            self._scores.append(finite[:: -(-len(finite) // self._most) or 1])
            self._sums[0] += finite.sum(dtype=float), len(finite)
        if not (held_back and row.kind == "sample"):  # it has scores, and was drawn by none of them
            self._sums[1] += row.chosen.sum(dtype=float), len(row.chosen)

    def period(self) -> Period:
        scores = np.concatenate(self._scores) if self._scores else np.empty(0)
        is_scored = len(scores) > 0
        offered, selected = (total / count if count else None for total, count in self._sums.tolist())
        return Period(
            first_step=min(self._steps),
            last_step=max(self._steps),
            answers=self._answers,
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
        drawn = pc.fill_null(pc.list_value_length(table["indices"]), 0).to_numpy()
        share = np.where(drawn > 0, drawn / np.maximum(table["candidates"].to_numpy(), 1), 0.0)
        unfolded = per_candidate(table)
        chance = np.repeat(share, rows_unfolded(table))
        kind, scores = unfolded["kind"], pc.cast(unfolded["score"], pa.float64())
        is_sample, is_drawn = pc.equal(kind, "sample"), unfolded["drawn"].is_valid()
        is_scored = pc.and_(pc.fill_null(pc.is_finite(scores), False), pc.invert(is_sample))  # a sample repeats scores
        for name in ("example_id", "example_id_text"):
            ids = unfolded[name]
            counted = pa.table(
                {
                    "id": pc.cast(ids, pa.string()),
                    "offered": pc.invert(is_sample).cast(pa.int64()),
                    "selected": is_drawn.cast(pa.int64()),
                    "expected": chance,
                    "remembered": pc.equal(kind, "remember").cast(pa.int64()),
                    "sampled": is_sample.cast(pa.int64()),
                    "score": pc.if_else(is_scored, scores, pa.scalar(None, pa.float64())),
                    "scored": is_scored.cast(pa.int64()),
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
        remembered = counted["remembered"].to_numpy()
        sampled_per_offer = counted["sampled"].to_numpy().sum() / max(1, remembered.sum())
        return Examples(
            ids=counted["id"].combine_chunks(),
            offered=counted["offered"].to_numpy(),
            selected=counted["selected"].to_numpy(),
            expected=counted["expected"].to_numpy() + remembered * sampled_per_offer,
            mean_score=np.where(scored > 0, sums / np.maximum(scored, 1), np.nan),
        )


def _summed(table: Any) -> Any:
    """Returns a row per id; sums taken in the order of rows, so that the same ledger gives the same bits."""
    names = [name for name in table.schema.names if name != "id"]
    grouped = table.group_by("id", use_threads=False).aggregate([(name, "sum") for name in names])
    return grouped.rename_columns([name.removesuffix("_sum") for name in grouped.schema.names]).select(
        table.schema.names
    )
