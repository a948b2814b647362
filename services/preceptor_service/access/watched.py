"""Files that are read again when they change: certificates, grants, keys."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from preceptor_service.config import ConfigError

T = TypeVar("T")

logger = logging.getLogger(__name__)

POLL_S = 1.0
"""Time between two looks at the files."""

_MAX_BYTES = 4 * 1024 * 1024


class Refreshable(Protocol):
    """Something that looks at its files now and then."""

    def refresh(self) -> None:
        """Looks once. Blocking; never raises."""
        ...


class Watched(Generic[T]):
    """What some files mean together, as of the last time that they made sense.

    Read by any thread, refreshed by one. Files are compared by content: they are small, and neither their times nor
    their inodes tell reliably that they changed.

    Args:
        what: their name in messages.
        paths: the files.
        parse: from their contents, in order, to the value; raises `ConfigError`, without quoting the contents.
        on_failure: told of each new content that cannot be used.

    Raises:
        ConfigError: they cannot be used now.
    """

    def __init__(
        self,
        what: str,
        paths: Sequence[Path],
        parse: Callable[[tuple[bytes, ...]], T],
        on_failure: Callable[[], None],
    ) -> None:
        self._what = what
        self._paths = tuple(paths)
        self._parse = parse
        self._on_failure = on_failure
        self._seen = self._read()
        self._is_unreadable = False
        self.value: T = parse(self._seen)
        self.generation = 0

    def refresh(self) -> None:
        """Takes what the files say now; keeps the value where they cannot be used. Blocking; never raises."""
        try:
            contents = self._read()
        except ConfigError as error:
            if not self._is_unreadable:
                self._report(error)
            self._is_unreadable = True
            return
        self._is_unreadable = False
        if contents == self._seen:
            return
        self._seen = contents
        try:
            self.value = self._parse(contents)
        except ConfigError as error:
            self._report(error)
            return
        self.generation += 1
        logger.info("read the changed %s", self._what)

    def _report(self, error: ConfigError) -> None:
        logger.error("the changed %s cannot be used, the previous one stays in use: %s", self._what, error)
        self._on_failure()

    def _read(self) -> tuple[bytes, ...]:
        return tuple(_content(path) for path in self._paths)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{path} is larger than {_MAX_BYTES} bytes; name the right file")
    return content


async def keep_fresh(refreshables: Sequence[Refreshable]) -> None:
    """Refreshes until cancelled, in a thread beside the event loop."""
    while True:
        await asyncio.sleep(POLL_S)
        for refreshable in refreshables:
            await asyncio.to_thread(refreshable.refresh)
