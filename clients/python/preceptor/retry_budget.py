"""`RetryBudget`: how often a trainer may repeat itself to a gateway that is overloaded."""

from __future__ import annotations

_SHARE = 0.05
_RESERVE = 2.0
_EVERY_S = 10.0


class RetryBudget:
    """Bounds super-batches that are sent again: one for twenty that are new, two more, and one each ten seconds.

    Where everybody repeats what was refused, an overloaded gateway has no time left for anything else. Not thread-safe.
    """

    def __init__(self) -> None:
        self._left = _RESERVE
        self._last = 0.0

    def earn(self) -> None:
        """Counts a super-batch that is sent for the first time."""
        self._left = min(_RESERVE, self._left + _SHARE)

    def spend(self, now: float) -> None:
        """Counts one that is sent again at `now`, of a clock in seconds; not before `ready_at`."""
        if self._left >= 1.0:
            self._left -= 1.0
        self._last = now

    def ready_at(self, now: float) -> float:
        """Returns when the next one may be sent again, if no new one is sent before."""
        return now if self._left >= 1.0 else max(now, self._last + _EVERY_S)
