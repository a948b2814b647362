"""`python -m benchmarks [name …]`: runs benchmarks, writes `results/` and the README's table.

Exits with 1 where a target was missed, unless `--no-check` says otherwise.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.results import Figure, Result, update_readme

BENCHMARKS = ("latency", "throughput", "memory", "push")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what was asked for and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Preceptor against its targets.")
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], help="which; default: all", metavar="name")
    parser.add_argument("--no-check", action="store_true", help="exit with 0 even where a target was missed")
    parser.add_argument("--no-save", action="store_true", help="leave results/ and the README as they are")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    missed = False
    for name in options.names or BENCHMARKS:
        console.print(f"[bold]{name}[/] …")
        figures, raw = importlib.import_module(f"benchmarks.{name}").run()
        console.print(_table(name, figures))
        missed |= any(figure.is_missed for figure in figures)
        if not options.no_save:
            _result(name, figures, raw).save()
    if not options.no_save:
        update_readme()
    if missed:
        console.print("[bold red]At least one target was missed.[/]")
    return int(missed and not options.no_check)


def _result(name: str, figures: list[Figure], raw: dict[str, object]) -> Result:
    return Result(
        benchmark=name,
        command=f"python -m benchmarks {name}",
        commit=machine.commit(),
        taken_at=datetime.now(UTC).strftime("%Y-%m-%d"),
        hardware=machine.hardware(),
        versions=machine.versions(),
        figures=figures,
        raw=raw,
    )


def _table(name: str, figures: list[Figure]) -> Table:
    table = Table(title=name, title_justify="left")
    for column in ("figure", "measured", "over rounds", "target", ""):
        table.add_column(column)
    for figure in figures:
        colour = {"missed": "bold red", "reached": "green"}.get(figure.verdict, "")
        table.add_row(figure.name, figure.shown, figure.spread, figure.target, figure.verdict, style=colour)
    return table


if __name__ == "__main__":
    sys.exit(main())
