"""Which errors of a scorer are about what it was asked, and which about itself. Called by the in-process pool."""

from __future__ import annotations

import logging

from preceptor.errors import (
    DeadlineExceededError,
    InternalError,
    PreceptorError,
    ResourceExhaustedError,
    ScorersUnavailableError,
    TooLargeError,
    UnavailableError,
)
from preceptor_service.scoring.pool import ScorerFailedError, ScorerLostError

logger = logging.getLogger(__name__)

_OF_ONE_SCORER = (DeadlineExceededError, InternalError, ResourceExhaustedError, UnavailableError)
_OF_ALL_SCORERS = (ScorersUnavailableError, TooLargeError)


def is_of_one_scorer(error: Exception) -> bool:
    """Tells whether another scorer may do better: memory, time, a store that is away, anything that is not ours."""
    if isinstance(error, (*_OF_ALL_SCORERS, ScorerLostError)):
        return False
    return not isinstance(error, PreceptorError) or isinstance(error, _OF_ONE_SCORER)


def failure(error: Exception, run_id: str) -> ScorerFailedError:
    """Logs why a scorer failed, and returns what is said of it, which names nothing that is not ours."""
    logger.error("run %s: a scorer failed", run_id, exc_info=error)
    if isinstance(error, PreceptorError):
        return ScorerFailedError(error)
    return ScorerFailedError(InternalError("scoring failed inside the service; its log says why"))
