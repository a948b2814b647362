"""Answers already given, so that a repeated step gets the same one again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from preceptor.errors import StepExistsError
from preceptor.v1 import selection_pb2


@dataclass(frozen=True)
class StepKey:
    """What names a super-batch: one (step, rank) of one life of a run."""

    run_id: str
    create_time_s: float
    step: int
    rank: int


class AnswerCache:
    """Selections by `StepKey`, at most `limit_bytes` of them, least recently used out."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._answers: OrderedDict[StepKey, tuple[bytes, selection_pb2.Selection]] = OrderedDict()

    def find(self, key: StepKey, identity: bytes) -> selection_pb2.Selection | None:
        """Returns the answer that `key` got before, or None.

        Raises:
            StepExistsError: `key` was used for a super-batch of another identity.
        """
        found = self._answers.get(key)
        if found is None:
            return None
        if found[0] != identity:
            raise StepExistsError(
                f"step {key.step} of rank {key.rank} in run {key.run_id!r} was answered for other candidates; "
                "continue at a later step, or use a new run"
            )
        self._answers.move_to_end(key)
        return found[1]

    def add(self, key: StepKey, identity: bytes, answer: selection_pb2.Selection) -> None:
        """Keeps `answer` for `key`."""
        previous = self._answers.pop(key, None)
        if previous is not None:
            self._bytes -= previous[1].ByteSize()
        self._answers[key] = (identity, answer)
        self._bytes += answer.ByteSize()
        while self._bytes > self._limit_bytes:
            _, (_, oldest) = self._answers.popitem(last=False)
            self._bytes -= oldest.ByteSize()
