"""`preceptor runs` and `preceptor status`: the runs of a gateway, their settings, and what happens to them."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
import yaml
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from preceptor import RunSpec, RunStatus
from preceptor_service.cli.connection import Gateway, asks_gateway

_WIDE = 110
_PIPED = 160
"""Columns where nobody looks: enough for the longest name of a run beside every column."""

_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead: every field, nothing folded.")]


@asks_gateway
def runs(
    gateway: Gateway,
    run: Annotated[str | None, typer.Argument(help="Print everything about this run; none: a line per run.")] = None,
    as_json: _Json = False,
) -> None:
    """List the runs of a service, or print all settings and the state of one."""
    with gateway.connect() as client:
        if run is not None:
            found = client.get_run(run).status()
            sys.stdout.write(_json(_described(found)) if as_json else _yaml(_described(found)))
            return
        listed = client.list_runs()
    if as_json:
        sys.stdout.write(_json([_described(run) for run in listed]))
        return
    console = _console()
    console.print(_runs_table(gateway.target, listed, console.width >= _WIDE) if listed else _none(gateway))


@asks_gateway
def status(
    gateway: Gateway,
    interval_s: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one table and leave.")] = False,
    as_json: _Json = False,
) -> None:
    """Watch the runs of a gateway: versions, staleness, throughput."""
    if as_json and not once:
        raise ValueError("--json prints one look; give --once too")
    console, target = _console(), gateway.target
    try:
        with gateway.connect() as client:
            before, since = client.list_runs(), time.monotonic()
            if as_json:
                sys.stdout.write(_json([_described(run) for run in before]))
                return
            if once:
                is_empty = not before
                console.print(_none(gateway) if is_empty else _status_table(console, target, before, before, 0.0))
                return
            table = _status_table(console, target, before, before, 0.0)
            with Live(table, console=console, auto_refresh=False) as live:
                while True:
                    time.sleep(interval_s)
                    found, now = client.list_runs(), time.monotonic()
                    live.update(_status_table(console, target, found, before, now - since), refresh=True)
                    before, since = found, now
    except KeyboardInterrupt:
        return


def _console() -> Console:
    is_asked = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if is_asked else _PIPED)


def _none(gateway: Gateway) -> str:
    return f"no runs at {gateway.target}" + (" that you may see" if gateway.has_token else "")


def _described(run: RunStatus) -> dict[str, Any]:
    """Returns everything that is known of a run, its settings first."""
    known = dataclasses.asdict(run)
    spec, cost = known.pop("spec"), known.pop("cost")
    if run.cost is not None:
        cost |= {"is_positive": run.cost.is_positive}
    return {
        "run_id": spec.pop("run_id"),
        "owner": known.pop("owner"),
        "created": moment(known.pop("create_time_s")),
        "last_answer": moment(known.pop("last_answer_time_s")),
        "last_push": moment(known.pop("learner_commit_time_s")),
        "settings": spec,
        "state": {**known, "staleness_steps": run.staleness_steps, "cost": cost},
    }


def moment(seconds: float | None) -> str | None:
    """Returns a time as ISO 8601 in UTC, so that two places mean the same."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _json(described: object) -> str:
    return json.dumps(described, indent=2) + "\n"


def _yaml(described: object) -> str:
    plain = json.loads(json.dumps(described))  # a tuple is a list
    return yaml.safe_dump(plain, sort_keys=False, width=sys.maxsize)


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


def _status_table(
    console: Console, target: str, runs: list[RunStatus], before: list[RunStatus], elapsed_s: float
) -> Table:
    is_wide = console.width >= _WIDE
    table = _table(f"Runs at {target}")
    table.padding = (0, 1) if is_wide else (0, 0)  # the box alone leaves a space between two columns
    table.caption = "counted by this gateway since it started" + (
        "; compute: beside uniform training, at the savings that the run expects; seconds: of scorers"
        if is_wide
        else "; pays: in compute, at the savings that the run expects"
    )
    for name in (
        "step",
        "learner\nversion",
        "stale-\nness",
        "super-\nbatches",
        "selec-\nted",
        "fall-\nbacks",
        "fail-\nures",
        "pays",
        *(("com-\npute", "break-\neven", "sec-\nonds") if is_wide else ()),
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
            _verdict(run, "yes", "no"),
            *((*_cost(run), f"{run.forward_s + run.co_training_s:,.1f}") if is_wide else ()),
            f"{gained / elapsed_s:,.0f}" if elapsed_s else "–",
        )
    return table


def _table(title: str) -> Table:
    """Returns an empty table whose first column, the run, is never cut off: 80 columns have to do."""
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title_justify="left")
    table.add_column("run", overflow="fold", vertical="top")
    return table


def _staleness(run: RunStatus) -> str:
    if run.staleness_steps is None:
        return "–"
    bound = run.spec.max_staleness_steps
    return f"{run.staleness_steps:,}" + ("" if bound is None else f"/{bound:,}")


def _verdict(run: RunStatus, yes: str, no: str) -> str:
    """Whether selection pays at the savings that the run expects, in colour."""
    if run.cost is None:
        return "–"
    return f"[green]{yes}[/green]" if run.cost.is_positive else f"[red]{no}[/red]"


def _cost(run: RunStatus) -> tuple[str, str]:
    """Compute over that of uniform training, and the share of updates to save for both to be the same."""
    if run.cost is None:
        return "–", "–"
    compute, least = f"{run.cost.compute_ratio:.0%}", run.cost.break_even_savings
    return _verdict(run, compute, compute), f"{least:.0%}" if least < 1 else "never"


def _or_dash(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"
