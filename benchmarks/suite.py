"""What one command measures: functions that give figures, the results they leave and the page of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.results import Figure, Result, load_all, markdown, with_table

Measured = tuple[list[Figure], dict[str, Any]]
"""Figures, and the raw numbers that they were made of."""


@dataclass(frozen=True)
class Suite:
    """Members that are measured alike.

    Attributes:
        command: what runs a member, without its name.
        members: name → what measures it.
        results: the folder of the results.
        page: the page with their tables.
        tables: name of a generated part of the page → what writes it.
    """

    command: str
    members: Mapping[str, Callable[[], Measured]]
    results: Path
    page: Path
    tables: Mapping[str, Callable[[Sequence[Result]], str]] = field(default_factory=lambda: {"results": markdown})

    def measure(self, names: Sequence[str], console: Console, save: bool) -> bool:
        """Measures, shows and, with `save`, writes the members named; returns whether a target was missed."""
        missed = False
        for name in names:
            console.print(f"[bold]{name}[/] …")
            figures, raw = self.members[name]()
            console.print(_table(name, figures))
            missed |= any(figure.is_missed for figure in figures)
            if save:
                self._result(name, figures, raw).save(self.results)
                self.write_page()
        if missed:
            console.print("[bold red]At least one target was missed.[/]")
        return missed

    def write_page(self) -> None:
        """Writes the tables anew from the results."""
        text, results = self.page.read_text(), load_all(self.results)
        for name, table in self.tables.items():
            text = with_table(text, table(results), name)
        self.page.write_text(text)

    def _result(self, name: str, figures: list[Figure], raw: dict[str, Any]) -> Result:
        return Result(
            name=name,
            command=f"{self.command} {name}",
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
