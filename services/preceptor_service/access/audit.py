"""The audit log: who pushed, created or deleted what, and how it ended. One line of JSON each."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
from datetime import UTC, datetime
from pathlib import Path

from preceptor_service.config import ConfigError
from preceptor_service.process_log import log_handler

logger = logging.getLogger("preceptor.audit")


class AuditLog:
    """Writes to the logger `preceptor.audit`, and to a file where one is named; neither tokens nor payloads.

    Blocks for one line written to the file. A file that was moved away is opened anew.

    Args:
        file: appended to; readable by its owner alone where it is made.
        to_standard_error: whether lines go there, or to what stands for it in a replica, where neither a file nor a
            handler of logging takes them.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, file: Path | None, to_standard_error: bool) -> None:
        logger.setLevel(logging.INFO)
        self._file: logging.Handler | None = None
        if file is not None:
            try:
                os.close(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
                self._file = logging.handlers.WatchedFileHandler(file, encoding="utf-8")
            except OSError as error:
                raise ConfigError(f"audit.file: cannot write {file}: {error.strerror}") from error
        elif to_standard_error and not logger.hasHandlers():
            logger.addHandler(log_handler())

    def write(
        self, method: str, *, run: str | None, identity: str | None, peer: str, code: str, digest: str | None = None
    ) -> None:
        """Writes one line.

        Args:
            method: name of the rpc.
            run: as the caller named it; None where it named none.
            identity: None where the caller is unknown.
            peer: network address of the caller, as gRPC gives it.
            code: status code by name, `OK` where it was done.
            digest: of the weights that were pushed, or of the reference that a new run asked for.
        """
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "identity": identity,
            "peer": peer,
            "method": method,
            "run": run[:64] if run is not None else None,
            "code": code,
            "digest": digest,
        }
        record = logger.makeRecord(logger.name, logging.INFO, __file__, 0, json.dumps(entry), (), None)
        logger.handle(record)
        if self._file is not None:
            self._file.handle(record)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
