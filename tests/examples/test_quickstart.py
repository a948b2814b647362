"""The README's quick start trains against a service."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from preceptor import SelectionClient


def test_the_quick_start_learns_and_can_be_repeated(target: str, repository: Path) -> None:
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, repository / "examples" / "quickstart.py"],
            env={**os.environ, "PRECEPTOR_TARGET": target, "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert (ran.stderr, ran.returncode) == ("", 0)
        accuracy = re.search(r"accuracy ([\d.]+)%", ran.stdout)
        assert accuracy is not None
        assert float(accuracy[1]) > 80

    with SelectionClient(target) as client:
        runs = client.list_runs()
    # The 1,497 digits that are not the reference's are eight super-batches in each of 40 epochs.
    assert [(run.super_batches, run.selected) for run in runs] == [(320, 320 * 64)] * 2
    # The last of the 40 blocks may still be under training.
    assert all(run.learner_version in (40, 41) for run in runs)


def test_the_readme_quotes_its_core(repository: Path) -> None:
    program = (repository / "examples" / "quickstart.py").read_text()
    core = re.search(r"^# \[quickstart\]\n(.*)^# \[/quickstart\]$", program, re.MULTILINE | re.DOTALL)
    assert core is not None
    assert f"```python\n{core[1]}```" in (repository / "README.md").read_text()
