"""What a Select stream keeps: the super-batches offered, the attempt to get them answered, and the outcomes.

Plain state without threads; `stream.py` guards it with its condition.
"""

from __future__ import annotations

import logging
import math
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from preceptor.answers import Selection
from preceptor.batches import EncodedBatch
from preceptor.channel import RpcFailure
from preceptor.errors import OverloadedError, PreceptorError, UnavailableError
from preceptor.v1 import selection_pb2

_log = logging.getLogger("preceptor")


class StepKey(NamedTuple):
    """Names a super-batch within its run."""

    step: int
    rank: int

    def __str__(self) -> str:
        return f"step {self.step}, rank {self.rank}"


@dataclass(eq=False)
class Offer:
    """One submitted super-batch, kept until its future is settled, because a break means sending it again."""

    key: StepKey
    batch: EncodedBatch
    sub_batch_size: int
    timeout_s: float
    deadline: float
    traceparent: str | None = None
    setback: OverloadedError | UnavailableError | None = None  # what came of the last try; the next is not its first
    failures: int = 0  # tries that ended with the service unavailable
    send_at: float = -math.inf  # not before that
    future: Future[Selection] = field(default_factory=Future)

    @property
    def asked_at(self) -> float:
        """When it was submitted."""
        return self.deadline - self.timeout_s

    @property
    def body_bytes(self) -> int:
        """Bytes of the body."""
        return len(self.batch.body)

    def asks_the_same_as(self, other: Offer) -> bool:
        """Whether an answer to the one is an answer to the other."""
        return (self.batch.digest, self.sub_batch_size) == (other.batch.digest, other.sub_batch_size)


@dataclass(eq=False)
class Attempt:
    """One Select call, from opening to its end."""

    open_deadline: float
    call: Any = None
    reader: threading.Thread | None = None
    opened: selection_pb2.SelectOpened | None = None
    credit_bytes: int = 0
    # Sent here and not answered here yet; an offer given up meanwhile stays, so that its answer is recognised.
    sent: dict[StepKey, Offer] = field(default_factory=dict)
    # Own draws that the header of a super-batch tells of, until something shows that it was read.
    telling: dict[StepKey, int] = field(default_factory=dict)
    failure: RpcFailure | None = None

    @property
    def is_over(self) -> bool:
        """Whether the call ended."""
        return self.failure is not None

    def end(self, failure: RpcFailure) -> None:
        """Ends the call; the first failure stands."""
        if self.failure is None:
            self.failure = failure
            self.call.cancel()

    def largest_body(self) -> int:
        """Bytes of the largest body that this gateway takes; 0 before it said so."""
        return min(self.opened.max_super_batch_bytes, self.opened.window_bytes) if self.opened is not None else 0

    def chunk_bytes(self, body_bytes: int, offset: int) -> int:
        """Bytes of the next chunk, or 0 where the credit does not cover it yet."""
        if self.opened is None:
            return 0
        size = min(self.opened.max_chunk_bytes, body_bytes - offset)
        return size if size <= self.credit_bytes else 0


@dataclass
class Settlements:
    """What futures shall be told once the condition is released."""

    outcomes: list[tuple[Offer, Selection | PreceptorError]] = field(default_factory=list)

    def add(self, offer: Offer, outcome: Selection | PreceptorError) -> None:
        """Notes what the future of `offer` shall be told."""
        self.outcomes.append((offer, outcome))

    def tell(self) -> None:
        """Settles the futures; those that were cancelled meanwhile stay so."""
        for offer, outcome in self.outcomes:
            try:
                _settle(offer.future, outcome)
            except (Exception, SystemExit):  # noqa: BLE001 - of a callback; the others are to be told all the same
                _log.exception("what followed the answer of %s ended with an error", offer.key)


def _settle(future: Future[Selection], outcome: Selection | PreceptorError) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Selection):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)
