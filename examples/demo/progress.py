"""Live progress of the arms: one bar each, with the last test accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.demo.training import Watcher


@contextmanager
def progress(console: Console, updates: int, arms: Iterable[str]) -> Iterator[dict[str, Watcher]]:
    """Shows a bar per arm while it lasts; yields arm → what its training calls after each update."""
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("updates"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[accuracy]}"),
    )
    with Progress(*columns, console=console) as bars:
        yield {arm: partial(_show, bars, bars.add_task(arm, total=updates, start=False, accuracy="")) for arm in arms}


def _show(bars: Progress, bar: int, update: int, accuracy: float | None) -> None:
    if update == 1:
        bars.start_task(bar)  # type: ignore[arg-type]
    bars.update(bar, completed=update)  # type: ignore[arg-type]
    if accuracy is not None:
        bars.update(bar, accuracy=f"test accuracy {accuracy:.1%}")  # type: ignore[arg-type]
