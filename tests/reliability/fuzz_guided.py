"""The proof `fuzz-guided`: the decoders under inputs that atheris looks for by what they reach."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.results import Figure
from benchmarks.suite import Measured
from tests.reliability.served import environment

SURFACES = ("arrow", "safetensors")
INPUTS, SHORT_INPUTS = 1_000_000, 2_000

_SEED = 20
_EXECUTED = re.compile(r"^stat::number_of_executed_units:\s*(\d+)", re.MULTILINE)
_REACHED = re.compile(r"^#\d+\s.*\bcov: (\d+) ft: (\d+) corp: (\d+)", re.MULTILINE)


def run(short: bool) -> Measured:
    """Has each decoder read so many inputs, unless one of them is trouble."""
    console = Console()
    figures: list[Figure] = []
    raw: dict[str, Any] = {"seed": _SEED}
    for surface in SURFACES:
        wanted = SHORT_INPUTS if short else INPUTS
        console.print(f"{surface}, {wanted:,} inputs …")
        found = raw[surface] = _guided(surface, wanted)
        figures += [
            Figure(f"{surface}: inputs", found["executed"], "", wanted, "at least"),
            Figure(f"{surface}: edges of the decoder reached", found["edges"], ""),
            Figure(f"{surface}: inputs that end the process or would be INTERNAL", len(found["trouble"]), "", 0),
        ]
    return figures, raw


def _guided(surface: str, inputs: int) -> dict[str, Any]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = [f"-runs={inputs}", f"-seed={_SEED}", "-print_final_stats=1", f"-artifact_prefix={folder}/"]
        ended = subprocess.run(
            [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "tests.reliability.guided",
                surface,
                str(folder / "corpus"),
                *options,
            ],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        trouble = [path.read_bytes()[:4096].hex() for path in folder.iterdir() if path.is_file()]
    executed, reached = _EXECUTED.search(ended.stderr), _REACHED.findall(ended.stderr)
    if ended.returncode and not trouble:
        raise RuntimeError(f"atheris ended with {ended.returncode}: {ended.stderr[-2000:]}")
    edges, features, kept = (int(count) for count in reached[-1]) if reached else (0, 0, 0)
    return {
        "executed": int(executed[1]) if executed else 0,
        "edges": edges,
        "features": features,
        "inputs_kept": kept,
        "trouble": trouble,
        "seconds": round(time.monotonic() - began, 1),
    }
