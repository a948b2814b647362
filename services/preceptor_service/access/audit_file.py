"""`AuditFile`: whole lines in a file that is its owner's alone and that others may move away. Called by `AuditLog`."""

from __future__ import annotations

import os
from pathlib import Path


class AuditFile:
    """Appends lines, and opens the file anew where it is no longer the one of its name. Blocking; for one thread.

    Args:
        path: readable by its owner alone wherever it is made, also anew.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._is_torn = False
        self._opened()

    def append(self, line: str) -> None:
        """Appends `line`. Where only a part of it could be written, the next one still begins a line of its own.

        Raises:
            OSError: the file can neither be written nor opened anew.
        """
        descriptor = self._opened()
        left = b"\n" * self._is_torn + f"{line}\n".encode()
        while left:
            left = left[os.write(descriptor, left) :]
            self._is_torn = bool(left)

    def close(self) -> None:
        """Closes it, until the next line."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def _opened(self) -> int:
        if self._descriptor is not None and not self._is_of_its_name(self._descriptor):
            self.close()
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            self._is_torn = False
        return self._descriptor

    def _is_of_its_name(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(descriptor))
        except FileNotFoundError:
            return False
