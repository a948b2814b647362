"""`RetryBudget`: how often a trainer may repeat itself to a gateway that is overloaded."""

from __future__ import annotations

_SHARE = 0.05
_RESERVE = 1.0
_STALLED_S = 10.0


class RetryBudget:
    """Bounds super-batches that are sent again: one for twenty new ones, one more, and one after 10 s of silence.

    Where everybody repeats what was refused, an overloaded gateway has no time left for anything else. Not thread-safe.
    """

    def __init__(self) -> None:
        self._left = _RESERVE
        self._sent_at = 0.0

    def earn(self, now: float) -> None:
        """Counts a super-batch that is sent for the first time, at `now` of a clock in seconds."""
        self._left = min(_RESERVE, self._left + _SHARE)
        self._sent_at = now

    def spend(self, now: float) -> None:
        """Counts one that is sent again at `now`; not before `ready_at`."""
        if self._left >= 1.0:
            self._left -= 1.0
        self._sent_at = now

    def ready_at(self, now: float) -> float:
        """Returns when the next one may be sent again, if no new one is sent before."""
        return now if self._left >= 1.0 else max(now, self._sent_at + _STALLED_S)
