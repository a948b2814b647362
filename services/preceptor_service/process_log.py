"""Gateways and scorers log into the log of the process that an operator watches.

Ray keeps the standard error of every process that it starts in a file of its session, which neither `kubectl logs` nor
`journalctl` shows; its own way to a driver drops repeated lines, and all where the driver lags. Called by replicas, the
audit log and `ray_cluster`.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

LOG_TO = "PRECEPTOR_LOG_TO"
"""Environment variable: the file that replicas append their log to. The chart names a pod's standard error."""

_FORMAT = "%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s"
_END_TIMEOUT_S = 5.0
_READ_BYTES = 1 << 16
_STANDARD_ERROR = 2

logger = logging.getLogger(__name__)


def start_logging() -> None:
    """Sends what this process logs as `preceptor_service` where `PRECEPTOR_LOG_TO` says; without it nothing changes."""
    ours = logging.getLogger(__package__)
    if os.environ.get(LOG_TO) and not ours.handlers:
        handler = log_handler()
        handler.setFormatter(logging.Formatter(_FORMAT))
        ours.addHandler(handler)


def log_handler() -> logging.Handler:
    """Returns a handler that appends to `PRECEPTOR_LOG_TO`, or writes to standard error where it is not set or fails.

    A line of at most 4096 bytes stays whole among those of others. Blocks while a pipe is full, and so loses nothing.
    """
    if path := os.environ.get(LOG_TO):
        try:
            return logging.FileHandler(path, encoding="utf-8")
        except OSError as error:
            logger.warning("%s: cannot write %s (%s); the log stays here", LOG_TO, path, error.strerror)
    return logging.StreamHandler()


class LogRelay:
    """A named pipe whose lines come out of the standard error of this process, and `PRECEPTOR_LOG_TO` that names it.

    A pipe also where standard error is a socket, as that of a systemd unit is: nobody else can open that one. Owns one
    thread, a temporary folder, and the variable, which processes inherit that are started from now on.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="preceptor-log-")
        path = Path(self._folder.name) / "pipe"
        os.mkfifo(path, 0o600)
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        # As long as one writer is open the pipe does not end, though replicas come and go.
        self._writer = os.open(path, os.O_WRONLY)
        os.set_blocking(self._reader, True)
        os.environ[LOG_TO] = str(path)
        self._thread = threading.Thread(target=self._relay, name="preceptor-log", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Passes on what was written, and ends. Those that write have to be gone; waits 5 s for that."""
        os.environ.pop(LOG_TO, None)
        os.close(self._writer)
        self._thread.join(_END_TIMEOUT_S)
        self._folder.cleanup()

    def _relay(self) -> None:
        while lines := os.read(self._reader, _READ_BYTES):
            # Where nobody reads standard error any more, replicas must not wait for it.
            with suppress(OSError):
                while lines:
                    lines = lines[os.write(_STANDARD_ERROR, lines) :]
        os.close(self._reader)
