"""The `preceptor` command: its parts, and `serve` and `config`."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from preceptor_service.cli.build_reference_losses import build_reference_losses
from preceptor_service.cli.cost import cost
from preceptor_service.cli.delete import delete
from preceptor_service.cli.failing import failed
from preceptor_service.cli.health import health
from preceptor_service.cli.ledger import ledger_commands
from preceptor_service.cli.look import runs, status
from preceptor_service.cli.report import report
from preceptor_service.cli.size import size_trainer
from preceptor_service.cli.store import store_commands
from preceptor_service.cli.token import token
from preceptor_service.cli.train_reference import train_reference
from preceptor_service.config import ConfigError, ServiceConfig, load_config
from preceptor_service.config_reference import default_yaml
from preceptor_service.service_manager import tell_service_manager

if TYPE_CHECKING:
    from preceptor_service.gateway.gateway import Ports

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Preceptor: online data selection for people who train large models.",
)
_INTERRUPTED = 130
console = Console()

app.command()(token)
app.add_typer(store_commands, name="store")
app.add_typer(ledger_commands, name="ledger")
app.command()(status)
app.command()(runs)
app.command()(delete)
app.command()(health)
app.command()(cost)
app.command()(report)
app.command("size")(size_trainer)
app.command("train-reference")(train_reference)
app.command("build-reference-losses")(build_reference_losses)


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option(help="Settings in YAML; every key is optional.")] = None,
    pool: Annotated[str | None, typer.Option(help="ray or in-process.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port for trainers.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port for Prometheus.")] = None,
    scorers: Annotated[int | None, typer.Option(help="Scorer replicas.")] = None,
    store: Annotated[str | None, typer.Option(help="Directory or s3:// URI of runs and weights.")] = None,
) -> None:
    """Start the service here and serve until Ctrl-C. No flag is needed."""
    # While it starts, SIGTERM interrupts as Ctrl-C does, so that what was started is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        settings = load_config(config, _overrides(pool, host, port, metrics_port, scorers, store))
        with console.status(f"starting ({settings.pool} pool) …"):
            # Imports torch, which takes seconds that the other commands need not wait.
            from preceptor_service.app import start_service

            service = start_service(settings)
    except ConfigError as error:
        raise failed(str(error)) from error
    except KeyboardInterrupt as interrupt:
        console.print("stopped before it was ready")
        raise typer.Exit(_INTERRUPTED) from interrupt
    stopping = threading.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, lambda *_: stopping.set())
    console.print(_banner(settings, service.ports), soft_wrap=True)
    tell_service_manager("READY=1")
    while not stopping.wait(1.0):
        pass
    tell_service_manager("STOPPING=1")
    with console.status("finishing what was accepted …"):
        service.stop()
    console.print("stopped")


@app.command("config")
def print_config() -> None:
    """Print every setting with its default and meaning, as YAML to start from."""
    typer.echo(default_yaml(), nl=False)


def _banner(settings: ServiceConfig, ports: Ports) -> str:
    warning = (
        "[bold red]insecure: anybody who reaches this port may read, push and delete every run.[/bold red]\n"
        "[red]Configure tls and auth (docs/security.md), or listen on 127.0.0.1.[/red]\n"
    )
    host = "localhost" if settings.metrics.host in ("0.0.0.0", "::") else settings.metrics.host  # noqa: S104 - shown, not bound
    scorers = "1 scorer" if settings.scorer.replicas == 1 else f"{settings.scorer.replicas} scorers"
    return (
        f"{warning if settings.is_insecure else ''}"
        f"[bold]preceptor[/bold] is serving on {settings.gateway.host}:{ports.grpc}\n"
        f"  access   {_access(settings)}\n"
        f"  metrics  {f'http://{host}:{ports.metrics}/metrics' if ports.metrics else 'off'}\n"
        f"  pool     {settings.pool}, {scorers}, device {settings.scorer.device}\n"
        f"  store    {escape(settings.weights.location)}\n"
        "Ctrl-C stops it."
    )


def _access(settings: ServiceConfig) -> str:
    transport = "plaintext" if settings.tls is None else "mTLS" if settings.tls.client_ca else "TLS"
    return f"{transport}, {'everybody who reaches it' if settings.auth is None else 'whom the access file grants it'}"


def _overrides(
    pool: str | None,
    host: str | None,
    port: int | None,
    metrics_port: int | None,
    scorers: int | None,
    store: str | None,
) -> dict[str, Any]:
    sections: dict[str, Any] = {
        "gateway": {"host": host, "port": port},
        "metrics": {"host": host, "port": metrics_port},
        "scorer": {"replicas": scorers},
        "weights": {"path": store},
    }
    given = {
        name: {key: value for key, value in section.items() if value is not None} for name, section in sections.items()
    }
    overrides: dict[str, Any] = {name: section for name, section in given.items() if section}
    return overrides if pool is None else {**overrides, "pool": pool}
