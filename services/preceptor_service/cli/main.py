"""The `preceptor` command: run the service, and look at one that runs."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from preceptor import PreceptorError, RunSpec, RunStatus
from preceptor.errors import UnavailableError
from preceptor_service.cli.build_reference_losses import build_reference_losses
from preceptor_service.cli.connection import (
    Target,
    TlsCa,
    TlsCertificate,
    TlsKey,
    TokenFile,
    UsesTls,
    open_client,
)
from preceptor_service.cli.cost import cost
from preceptor_service.cli.health import health
from preceptor_service.cli.ledger import ledger_commands
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
_WIDE = 110
console = Console()
complaints = Console(stderr=True)

app.command()(token)
app.add_typer(store_commands, name="store")
app.add_typer(ledger_commands, name="ledger")
app.command()(health)
app.command()(cost)
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
        raise _failed(str(error)) from error
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


@app.command()
def status(
    target: Target = "localhost:7600",
    interval_s: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one table and leave.")] = False,
    tls: UsesTls = False,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
) -> None:
    """Watch the runs of a gateway: versions, staleness, throughput."""
    try:
        with open_client(target, tls, tls_ca, tls_certificate, tls_key, token_file) as client:
            before, since = client.list_runs(), time.monotonic()
            if once:
                console.print(_status_table(target, before, before, 0.0))
                return
            with Live(_status_table(target, before, before, 0.0), console=console, auto_refresh=False) as live:
                while True:
                    time.sleep(interval_s)
                    runs, now = client.list_runs(), time.monotonic()
                    live.update(_status_table(target, runs, before, now - since), refresh=True)
                    before, since = runs, now
    except KeyboardInterrupt:
        return
    except ConfigError as error:
        raise _failed(str(error)) from error
    except (PreceptorError, ValueError) as error:
        raise _failed(_unreached(target, error)) from error


@app.command()
def runs(
    target: Target = "localhost:7600",
    tls: UsesTls = False,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
) -> None:
    """List the runs of a service and their settings."""
    try:
        with open_client(target, tls, tls_ca, tls_certificate, tls_key, token_file) as client:
            found = client.list_runs()
    except ConfigError as error:
        raise _failed(str(error)) from error
    except (PreceptorError, ValueError) as error:
        raise _failed(_unreached(target, error)) from error
    console.print(_runs_table(target, found, is_wide=console.width >= _WIDE) if found else f"no runs at {target}")


def _runs_table(target: str, runs: list[RunStatus], is_wide: bool) -> Table:
    table = _table(f"Runs at {target}")
    for name in ("created", *(("task",) if is_wide else ()), "model", "score", "selector"):
        table.add_column(name, no_wrap=True)
    for name in ("seed", *(("reference",) if is_wide else ())):
        table.add_column(name, overflow="fold")
    for run in runs:
        spec = run.spec
        table.add_row(
            spec.run_id,
            time.strftime("%Y-%m-%d %H:%M" if is_wide else "%Y-%m-%d", time.localtime(run.create_time_s)),
            *((spec.task,) if is_wide else ()),
            spec.model,
            spec.score,
            _selector(spec),
            str(spec.seed),
            *(((run.reference_digest or "–").removeprefix("sha256:")[:12],) if is_wide else ()),
        )
    return table


def _selector(spec: RunSpec) -> str:
    setting = {"softmax": spec.temperature, "proportional": spec.priority_exponent}.get(spec.selector)
    return spec.selector if setting is None else f"{spec.selector} {setting:g}"


def _status_table(target: str, runs: list[RunStatus], before: list[RunStatus], elapsed_s: float) -> Table:
    is_wide = console.width >= _WIDE
    table = _table(f"Runs at {target}")
    table.caption = "counted by this gateway since it started" + (
        "; compute: beside uniform training, at the savings that the run expects" if is_wide else ""
    )
    for name in (
        "step",
        "learner\nversion",
        "stale-\nness",
        "super-\nbatches",
        "selected",
        "fall-\nbacks",
        "fail-\nures",
        *(("com-\npute",) if is_wide else ()),
        "candi-\ndates/s",
    ):
        table.add_column(name, justify="right")
    earlier = {run.spec.run_id: run.candidates for run in before}
    for run in runs:
        gained = run.candidates - earlier.get(run.spec.run_id, run.candidates)
        table.add_row(
            run.spec.run_id,
            _or_dash(run.last_step),
            _or_dash(run.learner_version),
            _staleness(run),
            f"{run.super_batches:,}",
            f"{run.selected / run.candidates:.1%}" if run.candidates else "–",
            f"{run.fallbacks:,}",
            f"{run.failures:,}",
            *((_compute(run),) if is_wide else ()),
            f"{gained / elapsed_s:,.0f}" if elapsed_s else "–",
        )
    return table


def _table(title: str) -> Table:
    """Returns an empty table whose first column, the run, is never cut off: 80 columns have to do."""
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title_justify="left")
    table.add_column("run", overflow="fold", vertical="top")
    return table


def _staleness(run: RunStatus) -> str:
    if run.last_step is None or run.learner_step is None:
        return "–"
    bound = run.spec.max_staleness_steps
    return f"{run.last_step - run.learner_step:,}" + ("" if bound is None else f"/{bound:,}")


def _compute(run: RunStatus) -> str:
    """Compute over that of uniform training, at the savings that the run expects."""
    if run.cost is None:
        return "–"
    colour = "green" if run.cost.compute_ratio < 1 else "red"
    return f"[{colour}]{run.cost.compute_ratio:.0%}[/{colour}]"


def _or_dash(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


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


def _unreached(target: str, error: Exception) -> str:
    if not isinstance(error, UnavailableError):
        return str(error)
    return f"no service answers at {target}; start one with 'preceptor serve', or name another with --target ({error})"


def _failed(message: str) -> typer.Exit:
    complaints.print(f"preceptor: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(1)
