"""Answers already given, so that a repeated step gets the same one again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from preceptor.errors import StepExistsError
from preceptor.v1 import selection_pb2

_ENTRY_BYTES = 512
"""About what an answer takes in memory beside its own bytes: key, identity and their places in the dictionary."""


@dataclass(frozen=True)
class StepKey:
    """What names a super-batch: one (step, rank) of one life of a run."""

    run_id: str
    create_time_s: float
    step: int
    rank: int


class AnswerCache:
    """Selections by `StepKey`, at most `limit_bytes` of them in memory, least recently used out. For one event loop.

    Kept as bytes: parsed, a small one takes more than twenty times as much.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._answers: OrderedDict[StepKey, tuple[bytes, bytes]] = OrderedDict()
        self._under_way: dict[StepKey, tuple[bytes, int]] = {}

    def find(self, key: StepKey, identity: bytes, observed_version: int) -> selection_pb2.Selection | None:
        """Returns the answer that `key` got before, or None.

        Also None where that answer's learner version is below `observed_version`: a trainer's versions
        never go back.

        Raises:
            StepExistsError: `key` was used for a super-batch of another identity.
        """
        self._check(key, identity)
        found = self._answers.get(key)
        if found is None:
            return None
        answer = selection_pb2.Selection.FromString(found[1])
        if answer.HasField("learner_version") and answer.learner_version < observed_version:
            return None
        self._answers.move_to_end(key)
        return answer

    @contextmanager
    def under_way(self, key: StepKey, identity: bytes) -> Iterator[None]:
        """Keeps `key` for `identity` while its answer is worked out.

        Raises:
            StepExistsError: `key` is used for a super-batch of another identity.
        """
        self._check(key, identity)
        self._under_way[key] = (identity, self._under_way.get(key, (identity, 0))[1] + 1)
        try:
            yield
        finally:
            count = self._under_way[key][1] - 1
            if count:
                self._under_way[key] = (identity, count)
            else:
                del self._under_way[key]

    def add(self, key: StepKey, identity: bytes, answer: selection_pb2.Selection) -> None:
        """Keeps `answer` for `key`."""
        previous = self._answers.pop(key, None)
        if previous is not None:
            self._bytes -= _ENTRY_BYTES + len(previous[1])
        content = answer.SerializeToString()
        self._answers[key] = (identity, content)
        self._bytes += _ENTRY_BYTES + len(content)
        while self._bytes > self._limit_bytes:
            _, (_, oldest) = self._answers.popitem(last=False)
            self._bytes -= _ENTRY_BYTES + len(oldest)

    def _check(self, key: StepKey, identity: bytes) -> None:
        for used in (self._answers.get(key), self._under_way.get(key)):
            if used is not None and used[0] != identity:
                raise StepExistsError(
                    f"step {key.step} of rank {key.rank} in run {key.run_id!r} was used for other candidates; "
                    "continue at a later step, resume the loader's state_dict, or use a new run"
                )
