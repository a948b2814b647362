"""`Rescoring`: whether, and when, a micro-batch whose scorer was lost is offered again. Called by the pipeline."""

from __future__ import annotations

import random
from dataclasses import replace

from preceptor.errors import ScorersUnavailableError
from preceptor_service.scoring.pool import MicroBatch, ScorerFailedError, ScorerLostError, ScorerUnreachableError

_PAUSES_S = (0.0, 0.1, 0.3, 1.0)
"""After each scorer that was lost with the micro-batch. One that kills all that it meets must not go on for ever."""
_BACK_OFF_S = (0.05, 0.5)
"""First and longest pause while no scorer can be reached, which is not the micro-batch's fault."""
_REFUSALS = 20
"""So often scorers that failed leave the micro-batch to others before it is taken that there are none: some 12 s."""


class Rescoring:
    """Counts what happened to one micro-batch.

    Attributes:
        micro_batch: what to offer next; it names the scorers that failed with it.
    """

    def __init__(self, micro_batch: MicroBatch) -> None:
        self.micro_batch = micro_batch
        self._lost = 0
        self._unreached = 0

    def pause_s(self, error: ScorerLostError | TimeoutError) -> float:
        """Returns how long to wait before the next try, after one that ended with `error`.

        Where no scorer took the micro-batch there is always one: who calls has a deadline.

        Raises:
            ScorerFailedError: five scorers were lost with it, and the last one failed.
            ScorersUnavailableError: five were lost.
        """
        if isinstance(error, ScorerUnreachableError):
            return self._backed_off_s()
        self._unreached = 0
        self._lost += 1
        if self._lost > len(_PAUSES_S):
            if isinstance(error, ScorerFailedError):
                raise error
            raise ScorersUnavailableError(
                f"{self._lost} scorers were lost with the same {self.micro_batch.row_count} candidates; look for a "
                "scorer that is out of memory"
            )
        if isinstance(error, ScorerFailedError) and error.scorer is not None:
            self.micro_batch = replace(self.micro_batch, failed_at=(*self.micro_batch.failed_at, error.scorer))
        return _PAUSES_S[self._lost - 1]

    def _backed_off_s(self) -> float:
        first_s, longest_s = _BACK_OFF_S
        pause_s = min(longest_s, first_s * 2.0 ** min(self._unreached, 16))
        self._unreached += 1
        if self._unreached >= _REFUSALS:
            self.micro_batch = replace(self.micro_batch, failed_at=())
        return pause_s * random.uniform(0.5, 1.0)
