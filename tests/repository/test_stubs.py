"""The committed stubs are those of the committed contract."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_stubs_are_what_the_contract_generates(repository: Path) -> None:
    check = subprocess.run(
        [sys.executable, repository / "proto/generate.py", "--check"], capture_output=True, text=True, timeout=120
    )

    assert check.returncode == 0, check.stderr
