"""The program that scores ahead of training learns, and docs/memory-bank.md quotes it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from preceptor import SelectionClient
from preceptor_service.config import MemoryBankConfig
from preceptor_service.memory_bank.ids import MAX_ID_BYTES
from preceptor_service.memory_bank.rows import ROW_BYTES

UPDATES = 300


def test_it_learns_from_what_was_scored_ahead(target: str, repository: Path) -> None:
    ran = subprocess.run(
        [sys.executable, repository / "examples" / "memory_bank.py"],
        env={**os.environ, "PRECEPTOR_TARGET": target, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.stderr, ran.returncode) == ("", 0)
    accuracy = re.search(r"accuracy ([\d.]+)%", ran.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) > 80
    with SelectionClient(target) as client:
        [run] = client.list_runs()
    assert (run.super_batches, run.candidates, run.selected) == (0, UPDATES * 192, UPDATES * 64)


def test_the_page_tells_the_bounds_that_the_service_has(repository: Path) -> None:
    page, bounds = (repository / "docs" / "memory-bank.md").read_text(), MemoryBankConfig()
    assert f"{ROW_BYTES} bytes each: {bounds.max_bytes_per_run // ROW_BYTES:,} by default" in page
    assert f"`memory_bank.keep_operations` operations ({bounds.keep_operations:,})" in page
    assert f"texts of 1 to {MAX_ID_BYTES} bytes" in page


def test_the_page_quotes_its_core(repository: Path) -> None:
    program = (repository / "examples" / "memory_bank.py").read_text()
    core = re.search(r"^# \[memory-bank\]\n(.*)^# \[/memory-bank\]$", program, re.MULTILINE | re.DOTALL)
    assert core is not None
    assert f"```python\n{core[1]}```" in (repository / "docs" / "memory-bank.md").read_text()
