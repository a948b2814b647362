"""The audit log: who pushed, created or deleted what, and how it ended. One line of JSON each."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from preceptor_service.access.audit_file import AuditFile
from preceptor_service.config import ConfigError
from preceptor_service.process_log import log_handler

audit = logging.getLogger("preceptor.audit")
logger = logging.getLogger(__name__)


class AuditLog:
    """Writes to the logger `preceptor.audit`, and to a file where one is named; neither tokens nor payloads.

    Blocks for one line written to the file. For one thread. What was done is done: where the file does not take a line,
    that goes to the log of the process, and nobody is told but the operator.

    Args:
        file: appended to; readable by its owner alone where it is made, and opened anew where it was moved away.
        to_standard_error: whether lines go there, or to what stands for it in a replica, where neither a file nor a
            handler of logging takes them.
        on_failure: told of each line that the file did not take.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(
        self, file: Path | None, to_standard_error: bool, on_failure: Callable[[], None] = lambda: None
    ) -> None:
        audit.setLevel(logging.INFO)
        self._on_failure = on_failure
        self._is_failing = False
        self._file: AuditFile | None = None
        self._stand_in: logging.Handler | None = None
        if file is not None:
            try:
                self._file = AuditFile(file)
            except OSError as error:
                raise ConfigError(f"audit.file: cannot write {file}: {error.strerror}") from error
        elif to_standard_error and not audit.hasHandlers():
            audit.addHandler(log_handler())

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
        record = audit.makeRecord(audit.name, logging.INFO, __file__, 0, json.dumps(entry), (), None)
        audit.handle(record)
        if self._file is not None:
            self._append(self._file, record)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
        if self._stand_in is not None:
            self._stand_in.close()

    def _append(self, file: AuditFile, record: logging.LogRecord) -> None:
        try:
            file.append(record.getMessage())
        except OSError as error:
            self._on_failure()
            if not self._is_failing:
                logger.warning(
                    "audit.file: cannot write %s (%s); its lines come here until it can be", file.path, error.strerror
                )
            self._is_failing = True
            self._keep(record)
            return
        if self._is_failing:
            logger.warning("audit.file: %s is written again; lines from before are here alone", file.path)
        self._is_failing = False

    def _keep(self, record: logging.LogRecord) -> None:
        """Writes a line to the log of the process, unless a handler of logging took it already."""
        if audit.hasHandlers():
            return
        self._stand_in = self._stand_in or log_handler()
        self._stand_in.handle(record)
