"""How every command fails: what was wrong on standard error, and exit status 1."""

from __future__ import annotations

import typer
from rich.console import Console


def failed(message: str) -> typer.Exit:
    """Says on standard error what was wrong, and returns what the command raises."""
    Console(stderr=True).print(
        f"preceptor: {message}", style="red", markup=False, emoji=False, highlight=False, soft_wrap=True
    )
    return typer.Exit(1)


def file_problem(error: OSError, verb: str = "read") -> str:
    """Returns what the system says of a file, without the number that it gives it."""
    if error.filename is None or error.strerror is None:
        return str(error)
    return f"cannot {verb} {error.filename}: {error.strerror}"
