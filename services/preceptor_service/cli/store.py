"""`preceptor store`: back up the runs and weights of a service, and restore them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from preceptor.errors import PreceptorError
from preceptor_service.config import ConfigError, WeightsConfig, load_config
from preceptor_service.storage import check_storage, open_storage
from preceptor_service.store_backup import BackupError, Report, back_up
from preceptor_service.store_backup import restore as restore_from

store_commands = typer.Typer(no_args_is_help=True, help="Back up the runs and weights of a service, and restore them.")

_Config = Annotated[Path | None, typer.Option("--config", help="The settings that the service is started with.")]
_Store = Annotated[str | None, typer.Option("--store", help="Directory or s3:// URI of runs and weights.")]


@store_commands.command()
def backup(
    file: Annotated[Path, typer.Argument(help="The tar file to write.")], config: _Config = None, store: _Store = None
) -> None:
    """Write every run with its weights to a tar file, while the service goes on."""
    try:
        settings = _settings(config, store)
        if isinstance(settings.path, Path) and not settings.path.is_dir():
            raise BackupError(f"there is no directory {settings.location}")
        report = back_up(open_storage(settings), file)
    except (BackupError, ConfigError, PreceptorError, OSError) as error:
        raise _failed(f"no backup of the store: {error}") from error
    _say(report, str(file))
    if report.left_out:
        raise _failed("\n".join(["what is damaged in the store was left out:", *report.left_out]))


@store_commands.command()
def restore(
    file: Annotated[Path, typer.Argument(help="The tar file of a backup.")],
    config: _Config = None,
    store: _Store = None,
) -> None:
    """Write what a backup holds to an empty store, before the service is started on it."""
    try:
        settings = _settings(config, store)
        check_storage(settings)
        report = restore_from(file, open_storage(settings))
    except (BackupError, ConfigError, PreceptorError, OSError) as error:
        raise _failed(f"nothing to rely on was restored: {error}") from error
    _say(report, settings.location)


def _settings(config: Path | None, store: str | None) -> WeightsConfig:
    return load_config(config, {"weights": {"path": store}} if store else None).weights


def _say(report: Report, place: str) -> None:
    sys.stdout.write(
        f"{place} holds runs: {report.runs}, versions: {report.versions}, sets of weights: {report.blobs} "
        f"({report.total_bytes:,} bytes)\n"
    )


def _failed(message: str) -> typer.Exit:
    sys.stderr.write(f"preceptor: {message}\n")
    return typer.Exit(1)
