"""What a bank holds of each example, and what putting and sampling make of it. Pure functions of numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preceptor_service.memory_bank.ids import MAX_ID_BYTES, Ids

ROW_BYTES = MAX_ID_BYTES + 4 + 8 + 8 + 8 + 8 + 8
"""Most bytes of one example in memory; 52 where ids are whole numbers."""


@dataclass(frozen=True)
class Rows:
    """Remembered examples by rising id, all different; arrays of one length that never change.

    Attributes:
        ids: int64, or bytes.
        scores: float32, all finite; the priorities.
        learner_versions, learner_steps: int64, of the learner copy behind each score; 0 where the rule reads none.
        put_by: int64, number of the operation that put it, or refreshed it last.
        times_sampled: int64, since it came in.
        contents: uint64, `SuperBatch.contents`; 0 where an older gateway put it in, and it is not known.
    """

    ids: Ids
    scores: NDArray[np.float32]
    learner_versions: NDArray[np.int64]
    learner_steps: NDArray[np.int64]
    put_by: NDArray[np.int64]
    times_sampled: NDArray[np.int64]
    contents: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def total_bytes(self) -> int:
        """Bytes in memory."""
        return sum(getattr(self, field.name).nbytes for field in fields(self))

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Rows:
        """Returns the examples that a mask or rising positions name."""
        return Rows(*(getattr(self, field.name)[chosen] for field in fields(self)))


def no_rows() -> Rows:
    """Returns an empty bank's."""
    whole = np.empty(0, np.int64)
    return Rows(whole, np.empty(0, np.float32), whole, whole, whole, whole, np.empty(0, np.uint64))


def remembered(
    rows: Rows,
    ids: Ids,
    scores: NDArray[np.float32],
    contents: NDArray[np.uint64],
    learner_version: int,
    learner_step: int,
    number: int,
    capacity: int,
) -> tuple[Rows, int]:
    """Returns `rows` with the examples of one super-batch put in, and how many others left to make room.

    An example that is there already gets the new score and stamp and keeps its count of times sampled. One whose new
    score is not finite leaves the bank: what was known of it is out of date. Beyond `capacity` the oldest scores leave,
    refreshed ones being young, and among those of one super-batch the lowest: a sliding window, as the replay memory
    of the paper below. What was just put never leaves, because a super-batch is no larger than the bank.

    Args:
        rows: what is there.
        ids: `[B]`, all different, of the kind of those in `rows`.
        scores: float32 `[B]`.
        contents: uint64 `[B]`; 0 where it is not known, which leaves what was known.
        learner_version: of the learner copy behind them; 0 where there is none.
        learner_step: at which that was pushed.
        number: of the operation.
        capacity: at least B.

    Source: Schaul et al., arXiv 1511.05952, whose memory keeps the newest transitions and refreshes priorities.
    """
    if not len(rows):  # an empty bank takes ids of either kind
        rows = Rows(ids[:0], *(getattr(rows, field.name) for field in fields(rows)[1:]))
    finite = np.isfinite(scores)
    rows = rows.take(~np.isin(rows.ids, ids[~finite]))
    order = np.argsort(ids[finite])
    ids, scores, contents = ids[finite][order], scores[finite][order], contents[finite][order]
    places = np.searchsorted(rows.ids, ids)
    is_known = np.zeros(len(ids), np.bool_)
    inside = places < len(rows)
    is_known[inside] = rows.ids[places[inside]] == ids[inside]
    known = places[is_known]
    now = np.where(contents[is_known] > 0, contents[is_known], rows.contents[known])
    rows = _refreshed(rows, known, scores[is_known], now, learner_version, learner_step, number)
    new: tuple[Any, ...] = (scores[~is_known], learner_version, learner_step, number, 0, contents[~is_known])
    # `np.insert` casts to the type of the first, which would cut longer texts off.
    wide: Any = rows.ids.astype(np.result_type(rows.ids, ids))
    rows = Rows(
        np.insert(wide, places[~is_known], ids[~is_known]),
        *(
            np.insert(getattr(rows, field.name), places[~is_known], value)
            for field, value in zip(fields(rows)[1:], new, strict=True)
        ),
    )
    surplus = max(0, len(rows) - capacity)
    return (rows.take(~_oldest(rows, surplus)) if surplus else rows), surplus


def changed(rows: Rows, ids: Ids, contents: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Returns the positions in `ids` of examples that are there with another content."""
    if not len(rows):
        return np.empty(0, np.int64)
    places = np.minimum(np.searchsorted(rows.ids, ids), len(rows) - 1)
    kept = np.where(rows.ids[places] == ids, rows.contents[places], np.uint64(0))
    return np.flatnonzero((kept > 0) & (contents > 0) & (kept != contents))


def sampled(rows: Rows, ids: Ids, max_times_sampled: int | None) -> Rows:
    """Returns `rows` with these examples sampled once more; those that reach `max_times_sampled` leave.

    Raises:
        ValueError: one of them is not there.
    """
    places = np.searchsorted(rows.ids, ids)
    if (places >= len(rows)).any() or (rows.ids[places] != ids).any():
        raise ValueError("an example was sampled that the bank does not hold")
    times = rows.times_sampled.copy()
    times[places] += 1
    counted = replace(rows, times_sampled=times)
    return counted if max_times_sampled is None else counted.take(times < max_times_sampled)


def fresh(rows: Rows, step: int, max_staleness_steps: int | None) -> NDArray[np.int64]:
    """Returns the positions of examples whose score is young enough for `step`.

    That is where `step - learner_step` is at most `max_staleness_steps`. A score that no learner copy is behind never
    gets old.
    """
    if max_staleness_steps is None:
        return np.arange(len(rows))
    # The bound is subtracted, not the stamp: step - learner_step may leave 64 bits.
    is_young = rows.learner_steps >= step - max_staleness_steps
    return np.flatnonzero(is_young | (rows.learner_versions == 0))


def _refreshed(
    rows: Rows,
    places: NDArray[np.int64],
    scores: NDArray[np.float32],
    contents: NDArray[np.uint64],
    learner_version: int,
    learner_step: int,
    number: int,
) -> Rows:
    new = {
        "scores": scores,
        "contents": contents,
        "learner_versions": learner_version,
        "learner_steps": learner_step,
        "put_by": number,
    }
    columns = {field.name: getattr(rows, field.name) for field in fields(rows)}
    for name, values in new.items():
        columns[name] = columns[name].copy()
        columns[name][places] = values
    return Rows(**columns)


def _oldest(rows: Rows, count: int) -> NDArray[np.bool_]:
    """Returns which `count` examples are the first to leave: the oldest, of those the lowest, of those by id."""
    last = np.partition(rows.put_by, count - 1)[count - 1]
    leaves: NDArray[np.bool_] = rows.put_by < last
    tied = np.flatnonzero(rows.put_by == last)
    leaves[tied[np.argsort(rows.scores[tied], kind="stable")][: count - int(leaves.sum())]] = True
    return leaves
