"""`python -m benchmarks [name …]`: runs benchmarks, writes `results/` and the README's table.

Exits with 1 where a target was missed, unless `--no-check` says otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import gpu, latency, memory, push, throughput
from benchmarks.suite import Suite

_HERE = Path(__file__).resolve().parent
BENCHMARKS = Suite(
    command="python -m benchmarks",
    members={
        "latency": latency.run,
        "throughput": throughput.run,
        "memory": memory.run,
        "push": push.run,
        "gpu": gpu.run,
    },
    results=_HERE / "results",
    page=_HERE / "README.md",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what was asked for and returns the exit code."""
    names = tuple(BENCHMARKS.members)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Preceptor against its targets.")
    parser.add_argument(
        "names", nargs="*", choices=[[], *names], help="which; default: all that this machine can", metavar="name"
    )
    parser.add_argument("--no-check", action="store_true", help="exit with 0 even where a target was missed")
    parser.add_argument("--no-save", action="store_true", help="leave results/ and the README as they are")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    here = [name for name in names if name != "gpu" or torch.cuda.is_available()]
    missed = BENCHMARKS.measure(options.names or here, console, save=not options.no_save)
    return int(missed and not options.no_check)


if __name__ == "__main__":
    sys.exit(main())
