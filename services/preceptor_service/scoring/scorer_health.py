"""`ScorerHealth`: whether the device of one scorer still computes, and what becomes of its failures. No Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress

from preceptor_service.scoring.pool import ScorerFailedError, ScorerUnreachableError

logger = logging.getLogger(__name__)

_HOLD_S = 0.25
"""So long a failure is kept back: whoever fails at once is always free, and would be given everything."""
_PROBE_TIMEOUT_S = 5.0


class ScorerHealth:
    """Asks the device after every failure, and takes nothing more once it does not work.

    Only that is a reason for another scorer: what fails for any other reason may be what was asked, and would fail
    there, too. For one event loop.

    Args:
        scorer: tells the name of this one.
        device_works: asks the device; blocking.
    """

    def __init__(self, scorer: Callable[[], str], device_works: Callable[[], bool]) -> None:
        self._scorer = scorer
        self._device_works = device_works
        self._has_lost_device = False

    def check(self) -> None:
        """Does nothing while the device works.

        Raises:
            RuntimeError: it does not.
        """
        if self._has_lost_device:
            raise RuntimeError("the device computes nothing any more; this scorer has to be replaced")

    @asynccontextmanager
    async def watching(self, failed_at: Collection[str] = ()) -> AsyncIterator[None]:
        """Within it a failure gets the name of this scorer, and is kept back for a moment.

        Args:
            failed_at: names of scorers that leave the work to others.

        Raises:
            ScorerUnreachableError: this is one of them, or has lost its device.
        """
        if self._has_lost_device or (failed_at and self._scorer() in failed_at):
            await asyncio.sleep(_HOLD_S)
            raise ScorerUnreachableError("left to another scorer")
        try:
            yield
        except ScorerFailedError as error:
            error.scorer = self._scorer()
            await self._ask_device()
            await asyncio.sleep(_HOLD_S)
            raise

    async def _ask_device(self) -> None:
        works = False
        with suppress(TimeoutError):
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                works = await asyncio.to_thread(self._device_works)
        if not works and not self._has_lost_device:
            self._has_lost_device = True
            logger.error("the device computes nothing any more; this scorer takes no more work")
