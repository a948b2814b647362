"""The examples run as their docstrings say, in a short form, and select fewer corrupt candidates than chance."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["image_text", "causal_lm"])
def test_an_example_prints_a_table_in_which_selection_leaves_corrupt_candidates_out(
    name: str, repository: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", f"examples/{name}.py", "--updates", "30"],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    rows = {cells[0]: cells[1:] for cells in map(str.split, ended.stdout.splitlines()[3:])}
    assert {row[0] for row in rows.values()} == {"30"}
    assert float(rows["uniform"][1]) == pytest.approx(0.5, abs=0.1)
    assert float(rows["learnability"][1]) < 0.4
