"""Results: figures with their targets, as JSON files and as the table of a page."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Figure:
    """One measured number; `limit` is None where it is reported without a target."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    sense: Literal["at most", "at least"] = "at most"
    spread: str = ""

    @property
    def is_missed(self) -> bool:
        """Whether there is a target and the value is on its wrong side."""
        if self.limit is None:
            return False
        return self.value > self.limit if self.sense == "at most" else self.value < self.limit

    @property
    def verdict(self) -> str:
        """`"reached"`, `"missed"`, or nothing where there is no target."""
        return "" if self.limit is None else "missed" if self.is_missed else "reached"

    @property
    def target(self) -> str:
        """The target in words."""
        return "" if self.limit is None else f"{self.sense} {_number(self.limit)} {self.unit}".strip()

    @property
    def shown(self) -> str:
        """The value with its unit."""
        return f"{_number(self.value)} {self.unit}".strip()


@dataclass(frozen=True)
class Result:
    """What one command measured, and all that is needed to doubt it."""

    name: str
    command: str
    commit: str
    taken_at: str
    hardware: dict[str, Any]
    versions: dict[str, str]
    figures: list[Figure]
    raw: dict[str, Any] = field(default_factory=dict)

    def save(self, directory: Path) -> None:
        """Writes the result over the last one of the same name."""
        directory.mkdir(exist_ok=True)
        # Not `asdict(self)`: it makes pairs of what a Counter counts.
        content = {**vars(self), "figures": [asdict(figure) for figure in self.figures]}
        (directory / f"{self.name}.json").write_text(json.dumps(content, indent=1) + "\n")


def load(path: Path) -> Result:
    """Reads one result.

    Raises:
        ValueError, TypeError: the file is not one.
    """
    values = json.loads(path.read_text())
    return Result(**{**values, "figures": [Figure(**figure) for figure in values["figures"]]})


def load_all(directory: Path) -> list[Result]:
    """Reads every result, by name."""
    return [load(path) for path in sorted(directory.glob("*.json"))]


def markdown(results: Iterable[Result]) -> str:
    """Returns the results as a page's table."""
    lines = ["| Name | Figure | Measured | Over rounds | Target | |", "|---|---|---|---|---|---|"]
    for result in results:
        for figure in result.figures:
            cells = (result.name, figure.name, figure.shown, figure.spread, figure.target, figure.verdict)
            lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for result in results:
        machine = result.hardware
        lines.append(
            f"* {result.name}: `{result.command}` at `{result.commit[:12]}{result.commit[40:]}`, "
            f"{result.taken_at}, {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB"
            f"{', ' + machine['gpu'] if 'gpu' in machine else ''}"
        )
    return "\n".join(lines)


def table_of(text: str, name: str = "results") -> str:
    """Returns the generated part of a page that has this name.

    Raises:
        ValueError: it has none.
    """
    begin, end = _marks(name)
    return text[text.index(begin) + len(begin) : text.index(end)].strip("\n")


def with_table(text: str, table: str, name: str = "results") -> str:
    """Returns a page whose generated part of this name is `table`; errors as `table_of`."""
    begin, end = _marks(name)
    return f"{text[: text.index(begin)]}{begin}\n{table}\n{text[text.index(end) :]}"


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
