"""`preceptor store`: back up the runs and weights of a service, and restore them."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, TextIO

import typer

from preceptor.errors import DiskFullError, PreceptorError, UnavailableError
from preceptor_service.cli.failing import failed, file_problem
from preceptor_service.config import ConfigError, WeightsConfig, load_config
from preceptor_service.storage import check_storage, open_storage
from preceptor_service.store_backup import BackupError, Report, back_up, restore_stream, stream_backup
from preceptor_service.store_backup import restore as restore_from

store_commands = typer.Typer(no_args_is_help=True, help="Back up the runs and weights of a service, and restore them.")

_Config = Annotated[Path | None, typer.Option("--config", help="The settings that the service is started with.")]
_STREAM = Path("-")
_Store = Annotated[str | None, typer.Option("--store", help="Directory or s3:// URI of runs and weights.")]


@store_commands.command()
def backup(
    file: Annotated[Path, typer.Argument(help="The tar file to write; - for standard output.")],
    config: _Config = None,
    store: _Store = None,
) -> None:
    """Write every run with its weights to a tar file, while the service goes on."""
    try:
        settings = _settings(config, store)
        if isinstance(settings.path, Path) and not settings.path.is_dir():
            raise BackupError(f"there is no directory {settings.location}")
        if file == _STREAM:
            _check_no_terminal(sys.stdout, "output")
            report = stream_backup(open_storage(settings), sys.stdout.buffer)
        else:
            report = back_up(open_storage(settings), file)
    except (BackupError, ConfigError, PreceptorError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            _forget_output()
        raise failed(f"no backup of the store: {_told(error)}") from error
    _say(report, "the backup" if file == _STREAM else str(file), sys.stderr if file == _STREAM else sys.stdout)
    if report.left_out:
        raise failed("\n".join(["what is damaged in the store was left out:", *report.left_out]))


@store_commands.command()
def restore(
    file: Annotated[Path, typer.Argument(help="The tar file of a backup; - for standard input.")],
    config: _Config = None,
    store: _Store = None,
) -> None:
    """Write what a backup holds to an empty store, before the service is started on it."""
    try:
        settings = _settings(config, store)
        check_storage(settings)
        if file == _STREAM:
            _check_no_terminal(sys.stdin, "input")
            report = restore_stream(sys.stdin.buffer, open_storage(settings))
        else:
            report = restore_from(file, open_storage(settings))
    except (BackupError, ConfigError, PreceptorError, OSError) as error:
        raise failed(f"nothing to rely on was restored: {_told(error)}") from error
    _say(report, settings.location, sys.stdout)


def _settings(config: Path | None, store: str | None) -> WeightsConfig:
    return load_config(config, {"weights": {"path": store}} if store else None).weights


def _told(error: Exception) -> str:
    if isinstance(error, OSError):
        return file_problem(error, "use")
    # Of an object store its text says nothing, because trainers read it; whoever calls this may know.
    is_of_store = isinstance(error, UnavailableError | DiskFullError) and error.__cause__ is not None
    return f"{error} ({error.__cause__})" if is_of_store else str(error)


def _check_no_terminal(stream: TextIO, name: str) -> None:
    if stream.isatty():
        raise BackupError(f"standard {name} is a terminal; redirect it to a file")


def _forget_output() -> None:
    """Lets Python end without a second complaint about what standard output still holds, and nobody reads."""
    with suppress(OSError):  # not one of the system's
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(report: Report, place: str, stream: TextIO) -> None:
    stream.write(
        f"{place} holds runs: {report.runs}, versions: {report.versions}, sets of weights: {report.blobs} "
        f"({report.total_bytes:,} bytes)\n"
    )
