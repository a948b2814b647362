"""The `preceptor` command: run the service, and look at one that runs."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from preceptor import PreceptorError, RunStatus
from preceptor_service.app import start_service
from preceptor_service.cli_connection import (
    Target,
    TlsCa,
    TlsCertificate,
    TlsKey,
    TokenFile,
    UsesTls,
    open_client,
)
from preceptor_service.config import ConfigError, ServiceConfig, load_config
from preceptor_service.config_reference import default_yaml
from preceptor_service.gateway.gateway import Ports
from preceptor_service.token_command import token

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Preceptor: online data selection for people who train large models.",
)
console = Console()
complaints = Console(stderr=True)

app.command()(token)


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option(help="Settings in YAML; every key is optional.")] = None,
    pool: Annotated[str | None, typer.Option(help="ray or in-process.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port for trainers.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port for Prometheus.")] = None,
    scorers: Annotated[int | None, typer.Option(help="Scorer replicas.")] = None,
    store: Annotated[Path | None, typer.Option(help="Directory of runs and weights.")] = None,
) -> None:
    """Start the service here and serve until Ctrl-C. No flag is needed."""
    try:
        settings = load_config(config, _overrides(pool, host, port, metrics_port, scorers, store))
        with console.status(f"starting ({settings.pool} pool) …"):
            service = start_service(settings)
    except ConfigError as error:
        raise _failed(str(error)) from error
    stopping = threading.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, lambda *_: stopping.set())
    console.print(_banner(settings, service.ports))
    while not stopping.wait(1.0):
        pass
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
    except PreceptorError as error:
        raise _failed(f"{target}: {error}") from error


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
    except PreceptorError as error:
        raise _failed(f"{target}: {error}") from error
    table = Table(title=f"Runs at {target}")
    for name in ("run", "created", "task", "model", "score", "selector", "temperature", "seed", "reference"):
        table.add_column(name)
    for run in found:
        spec = run.spec
        table.add_row(
            spec.run_id,
            time.strftime("%Y-%m-%d %H:%M", time.localtime(run.create_time_s)),
            spec.task,
            spec.model,
            spec.score,
            spec.selector,
            f"{spec.temperature:g}",
            str(spec.seed),
            (run.reference_digest or "–")[: len("sha256:") + 12],
        )
    console.print(table if found else f"no runs at {target}")


def _status_table(target: str, runs: list[RunStatus], before: list[RunStatus], elapsed_s: float) -> Table:
    table = Table(title=f"Runs at {target}", caption="counters of this gateway since it started; Ctrl-C leaves")
    for name in ("run", "step", "learner version", "staleness", "super-batches", "selected", "fallbacks", "failures"):
        table.add_column(name, justify="left" if name == "run" else "right")
    table.add_column("candidates/s", justify="right")
    earlier = {run.spec.run_id: run.candidates for run in before}
    for run in runs:
        gained = run.candidates - earlier.get(run.spec.run_id, run.candidates)
        table.add_row(
            run.spec.run_id,
            _or_dash(run.last_step),
            _or_dash(run.learner_version),
            _staleness(run),
            f"{run.super_batches:,}",
            f"{run.selected:,} of {run.candidates:,}",
            f"{run.fallbacks:,}",
            f"{run.failures:,}",
            f"{gained / elapsed_s:,.0f}" if elapsed_s else "–",
        )
    return table


def _staleness(run: RunStatus) -> str:
    if run.last_step is None or run.learner_step is None:
        return "–"
    bound = run.spec.max_staleness_steps
    return f"{run.last_step - run.learner_step}" + ("" if bound is None else f" of {bound}")


def _or_dash(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _banner(settings: ServiceConfig, ports: Ports) -> str:
    metrics = f"http://{settings.metrics.host}:{ports.metrics}/metrics" if ports.metrics else "off"
    warning = (
        "[bold red]insecure: anybody who reaches this port may read, push and delete every run.[/bold red]\n"
        "[red]Configure tls and auth (docs/security.md), or listen on 127.0.0.1.[/red]\n"
    )
    return (
        f"{warning if settings.is_insecure else ''}"
        f"[bold]preceptor[/bold] is serving on {settings.gateway.host}:{ports.grpc}\n"
        f"  access   {_access(settings)}\n"
        f"  metrics  {metrics}\n"
        f"  pool     {settings.pool}, {settings.scorer.replicas} scorer(s) on {settings.scorer.device}\n"
        f"  store    {settings.weights.path.absolute()}\n"
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
    store: Path | None,
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


def _failed(message: str) -> typer.Exit:
    complaints.print(f"preceptor: {message}", style="red", markup=False, highlight=False)
    return typer.Exit(1)
