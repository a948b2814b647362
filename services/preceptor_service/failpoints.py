"""Named places between the durable steps of a push, at which a test lets the process die.

Nothing is armed unless whoever starts the process sets `PRECEPTOR_FAILPOINT` to a name, or to `name:3` for the third
time that it is reached, or a test calls `arm`. No call and no setting of the service leads here. A place that is not
armed costs one comparison.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast, get_args

Failpoint = Literal[
    # staging, on the gateway's machine
    "upload-opened",
    "upload-written",
    "upload-synced",
    "upload-removed",
    # a store in a directory
    "blob-linked",
    "blob-named",
    "blob-durable",
    "versions-made",
    "versions-durable",
    "manifest-synced",
    "manifest-named",
    "manifest-durable",
    # a store in an object store
    "object-sent",
    "object-cached",
    "object-created",
    "object-copied",
    # collection
    "version-expired",
    "blob-set-aside",
    "blob-restored",
    "blob-removed",
    "leftover-removed",
]
"""What was done last. Before `manifest-named` or `object-created` a push is not committed, from there on it is."""

FAILPOINTS: tuple[Failpoint, ...] = get_args(Failpoint)

_VARIABLE = "PRECEPTOR_FAILPOINT"

logger = logging.getLogger(__name__)


@dataclass
class _Armed:
    point: Failpoint
    passes: int
    die: Callable[[], object]


_armed: _Armed | None = None


def reached(point: Failpoint) -> None:
    """Does nothing, unless this place is armed."""
    if _armed is not None and _armed.point == point:
        _armed.passes -= 1
        if _armed.passes < 0:
            _armed.die()


def arm(point: Failpoint, passes: int = 0, die: Callable[[], object] | None = None) -> None:
    """Lets this process die of SIGKILL, or by `die`, when it reaches `point` after it passed it so many times.

    Raises:
        ValueError: there is no such place.
    """
    global _armed
    if point not in FAILPOINTS:
        raise ValueError(f"{_VARIABLE} is {point!r}; choose from {', '.join(FAILPOINTS)}")
    _armed = _Armed(point, passes, die or _be_killed)


def _be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm_from(environment: str | None) -> None:
    if environment:
        point, _, time = environment.partition(":")
        arm(cast(Failpoint, point), int(time or 1) - 1)
        logger.warning("this process is going to die at %s (%s)", environment, _VARIABLE)


_arm_from(os.environ.get(_VARIABLE))
