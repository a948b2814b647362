"""`preceptor ledger`: what each step of a run was drawn from, as a file; and the same drawn again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from preceptor.errors import InvalidRunError
from preceptor_service.cli.connection import Gateway, asks_gateway
from preceptor_service.cli.failing import failed
from preceptor_service.config import ConfigError, load_config
from preceptor_service.ledger.replay import LedgerFileError, ReplayFile
from preceptor_service.method_registry import MethodRegistry

ledger_commands = typer.Typer(
    no_args_is_help=True, help="Export what each step of a run was drawn from, and draw it again."
)

_SHOWN = 20


@ledger_commands.command()
@asks_gateway
def export(
    gateway: Gateway,
    run: Annotated[str, typer.Argument(help="The run, created with RunSpec(..., ledger=True).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The Parquet file to write.")],
    from_step: Annotated[int | None, typer.Option(help="First step; none: the first that is kept.")] = None,
    to_step: Annotated[int | None, typer.Option(help="Last step, included; none: the last that is kept.")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds for all of it.")] = 600.0,
) -> None:
    """Write a run's ledger to a Parquet file, one row per answered super-batch and operation of its memory bank."""
    with gateway.connect() as client:
        written = client.get_run(run).export_ledger(out, from_step, to_step, timeout_s)
    sys.stdout.write(f"{out} holds {written.steps:,} steps of run {run}\n")
    if written.damaged:
        raise failed("\n".join(["what is damaged in the store was left out:", *written.damaged]))


@ledger_commands.command()
def replay(
    file: Annotated[Path, typer.Argument(help="An exported ledger.")],
    config: Annotated[
        Path | None, typer.Option(help="The service's settings, where the run's selector is the operator's own.")
    ] = None,
) -> None:
    """Draw every step of an exported ledger again, and fail where anything else comes out."""
    try:
        ledger, settings = ReplayFile(file), load_config(config)
        methods = MethodRegistry(settings.rules, settings.selectors)
        steps, differing, unknown = 0, 0, 0
        for found in ledger.replayed(methods):
            steps += 1
            unknown += not found.is_known
            if found.difference is not None:
                differing += 1
                if differing <= _SHOWN:
                    sys.stdout.write(f"step {found.step}, rank {found.rank}: {found.difference}\n")
    except InvalidRunError as error:
        raise failed(f"{error}; give the --config that names the operator's own") from error
    except (ConfigError, LedgerFileError, ValueError) as error:
        raise failed(str(error)) from error
    of = f"of {steps:,} steps of run {ledger.spec.run_id}"
    kept = f"{unknown:,} {of} are not replayable because earlier operations of the memory bank are not kept here"
    if unknown and (differing or unknown == steps):
        sys.stdout.write(f"{kept}\n")
    if differing:
        raise failed(f"{differing:,} {of} do not replay to what was selected")
    if unknown == steps > 0:
        raise failed(f"nothing could be drawn again; export run {ledger.spec.run_id} from its first step on")
    if unknown:
        sys.stdout.write(f"{kept}; the other {steps - unknown:,} replay to what was selected, bit for bit\n")
    else:
        sys.stdout.write(f"all {steps:,} steps of run {ledger.spec.run_id} replay to what was selected, bit for bit\n")
