"""Commands that see nothing of this checkout and its environment, as where somebody installs a wheel."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def run(*command: str | Path, cwd: Path, timeout_s: float = 240, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; keywords are environment variables."""
    return subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def environment() -> dict[str, str]:
    """Returns the variables of this process, but those that lead Python here or `preceptor` to a service."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PRECEPTOR_"))}
