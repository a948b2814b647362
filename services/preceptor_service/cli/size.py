"""`preceptor size`: how many scorers, and so GPUs, a trainer needs, from candidates per second that were measured."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import typer
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from preceptor import RunSpec, RunStatus, SelectionClient
from preceptor.errors import InvalidRunError
from preceptor_service.cli.connection import Gateway, asks_gateway
from preceptor_service.config import MIB, ServiceConfig
from preceptor_service.schedule import share_by_score
from preceptor_service.sizing import TARGET_UTILISATION, Measured, Sizing, TrainerLoad, size

_MEGABYTE = 1e6
_RUN_ID = "size"
_OPTIONS = {
    "super_batch": "--super-batch",
    "sub_batch": "--sub-batch",
    "step_time_s": "--step-time",
    "ranks": "--ranks",
    "candidates_per_second": "--candidates-per-second",
    "candidate_bytes": "--candidate-bytes",
    "learner_bytes": "--model-bytes",
    "reference_bytes": "--model-bytes",
    "target_utilisation": "--utilisation",
    "model": "--model",
    "task": "--task",
    "score": "--score",
}
"""What a number, or a setting of the run, is called in an error → the option that gives it."""
_FIELD = re.compile(rf"^(?:{'|'.join(_OPTIONS)})(?= is )|\b(?:{'|'.join(n for n in _OPTIONS if '_' in n)})\b")


@dataclass(frozen=True)
class _Rate:
    """What one scorer scores per second, and where that number comes from."""

    candidates_per_second: float
    source: str


@asks_gateway
def size_trainer(
    gateway: Gateway,
    super_batch: Annotated[int, typer.Option(help="B: candidates that one rank offers per step.")],
    sub_batch: Annotated[int, typer.Option(help="b: examples that it trains on.")],
    step_time: Annotated[float, typer.Option(help="Seconds of one step of training, without selection.")],
    ranks: Annotated[int, typer.Option(help="Processes that train, each with a super-batch of its own.")] = 1,
    utilisation: Annotated[
        float, typer.Option(help="Share of their time that replicas shall work.")
    ] = TARGET_UTILISATION,
    candidates_per_second: Annotated[float | None, typer.Option(help="What one scorer scores, as measured.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure it on this machine; needs --model.")] = False,
    run: Annotated[str | None, typer.Option(help="Read it from this run, while it trains.")] = None,
    scorers: Annotated[int, typer.Option(help="Scorers that shared what this gateway gave them.")] = 1,
    interval: Annotated[float, typer.Option(help="Seconds to measure or to read for.")] = 5.0,
    model: Annotated[str | None, typer.Option(help="The run's model, for its bytes and --measure.")] = None,
    model_config: Annotated[str, typer.Option(help="Its settings, as JSON.")] = "{}",
    task: Annotated[str, typer.Option(help="The run's task.")] = "classification",
    score: Annotated[str, typer.Option(help="The run's score.")] = "learnability",
    cross_reference: Annotated[
        bool, typer.Option("--cross-reference", help="The run has two references, one of each half of the data.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where --measure measures: auto, cpu or cuda.")] = "auto",
    micro_batch_rows: Annotated[int, typer.Option(help="Rows of one forward pass of --measure.")] = 512,
    threads: Annotated[int | None, typer.Option(help="Threads of it on a CPU; none: all cores.")] = None,
    candidate_bytes: Annotated[int | None, typer.Option(help="Bytes of one candidate, where no model tells.")] = None,
    model_bytes: Annotated[int | None, typer.Option(help="Bytes of each model, where no model tells.")] = None,
    gateway_mb_per_second: Annotated[
        float | None, typer.Option(help="MB/s that one gateway receives, as measured.")
    ] = None,
) -> None:
    """Print how many scorers and gateways a trainer needs so that it never waits for selection."""
    with _naming_options():
        load = TrainerLoad(super_batch, sub_batch, step_time, ranks)
        _check_sources(
            {
                "--candidates-per-second": candidates_per_second is not None,
                "--measure": measure,
                "--run": run is not None,
            }
        )
        _check_interval(interval)
        if scorers < 1:
            raise ValueError(f"--scorers is {scorers}; it must be 1 or above")
        if gateway_mb_per_second is not None and not gateway_mb_per_second > 0:
            raise ValueError(f"--gateway-mb-per-second is {gateway_mb_per_second:g}; it must be above 0")
        spec = None if model is None else _spec(model, model_config, task, score, cross_reference)
        if run is not None:
            with gateway.connect() as client:
                spec, rate = _read(client, gateway.target, run, scorers, interval)
        elif measure:
            rate = _measured(spec, super_batch, micro_batch_rows, interval, device, threads)
        else:
            rate = _Rate(candidates_per_second or 0.0, "as given")
        measured = Measured(
            rate.candidates_per_second,
            *_bytes(spec, candidate_bytes, model_bytes),
            None if gateway_mb_per_second is None else gateway_mb_per_second * _MEGABYTE,
        )
        found = size(load, measured, utilisation)
    console = Console()
    console.print(_table(load, measured, rate, found))
    console.print(_settings(load, found), style="dim", highlight=False)


@contextmanager
def _naming_options() -> Iterator[None]:
    """Has a complaint about a number name the option that gave it."""
    try:
        yield
    except (ValueError, InvalidRunError) as error:
        raise ValueError(_FIELD.sub(lambda field: _OPTIONS[field[0]], str(error))) from error


def _check_sources(is_given: dict[str, bool]) -> None:
    given = [option for option, found in is_given.items() if found]
    *others, last = is_given
    options = f"{', '.join(others)} and {last}"
    if not given:
        raise ValueError(f"none of {options} is given; one has to say how many candidates a scorer scores per second")
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are given; give one of {options}")


def _check_interval(interval: float) -> None:
    if not (math.isfinite(interval) and 0 < interval <= 3600):
        raise ValueError(f"--interval is {interval:g}; it is seconds, above 0 and at most 3600")


def _spec(model: str, model_config: str, task: str, score: str, cross_reference: bool) -> RunSpec:
    try:
        config = json.loads(model_config)
    except ValueError as error:
        raise ValueError(f"--model-config is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f'--model-config is {model_config[:64]!r}; give an object, such as {{"width": 16}}')
    return RunSpec(_RUN_ID, model, config, task, score=score, cross_reference=cross_reference)


def _measured(
    spec: RunSpec | None, rows: int, micro_batch_rows: int, seconds: float, device: str, threads: int | None
) -> _Rate:
    if spec is None:
        raise ValueError("--measure needs --model, and --model-config where the model has settings")
    for option, value in (("--micro-batch-rows", micro_batch_rows), ("--threads", threads or 1)):
        if value < 1:
            raise ValueError(f"{option} is {value}; it must be 1 or above")
    if spec.score == "uniform":
        raise ValueError("--score is 'uniform', which scores nothing; choose the one that the run will have")
    devices: dict[str, Literal["auto", "cpu", "cuda"]] = {"auto": "auto", "cpu": "cpu", "cuda": "cuda"}
    if device not in devices:
        raise ValueError(f"--device is {device[:64]!r}; choose one of {', '.join(devices)}")
    # Brings torch, which takes seconds.
    from preceptor_service.measuring import measure_candidates_per_second

    rate, on = measure_candidates_per_second(spec, rows, micro_batch_rows, seconds, devices[device], threads)
    return _Rate(rate, f"measured on this machine's {'GPU' if on == 'cuda' else 'CPU'}")


def _read(client: SelectionClient, target: str, run_id: str, scorers: int, interval_s: float) -> tuple[RunSpec, _Rate]:
    """Returns a run's settings, and what this gateway scored for it per second and scorer, if it asked for no more."""
    before, started = client.get_run(run_id).status(), time.monotonic()
    time.sleep(interval_s)
    after, elapsed_s = client.get_run(run_id).status(), time.monotonic() - started
    gained = after.candidates - before.candidates
    if gained <= 0:
        raise ValueError(
            f"run {run_id!r} was offered no candidates at {target} for {elapsed_s:.1f} s; "
            "let its trainer run meanwhile, or choose a longer --interval"
        )
    _check_all_was_scored(run_id, before, after, elapsed_s)
    source = f"of run {run_id} at this gateway alone, if it kept scorers busy"
    return after.spec, _Rate(gained / elapsed_s / scorers, source)


def _check_all_was_scored(run_id: str, before: RunStatus, after: RunStatus, elapsed_s: float) -> None:
    """Raises where super-batches were answered without scores, which takes scorers no time."""
    if after.spec.score == "uniform":
        raise ValueError(f"the score of run {run_id!r} is 'uniform', which scores nothing; read from another run")
    if held_back := after.control_super_batches - before.control_super_batches:
        raise ValueError(
            f"{held_back} of {after.super_batches - before.super_batches} answers to run {run_id!r} within "
            f"{elapsed_s:.1f} s were held back as its control arm, drawn without scores; read from a run without one"
        )
    steps = [status.last_step for status in (before, after) if status.last_step is not None]
    if any(share_by_score(after.spec, step) == 0 for step in steps):
        raise ValueError(
            f"the schedule of run {run_id!r} has its sub-batches drawn uniformly, at step {steps[0]} or {steps[-1]}; "
            "read from it while it selects by score"
        )
    if fallbacks := after.fallbacks - before.fallbacks:
        raise ValueError(
            f"{fallbacks} of {after.super_batches - before.super_batches} answers to run {run_id!r} within "
            f"{elapsed_s:.1f} s were fallbacks, drawn without scores; read from it once it gets none, "
            "see PreceptorFallbackActive in docs/alerts.md"
        )


def _bytes(
    spec: RunSpec | None, candidate_bytes: int | None, model_bytes: int | None
) -> tuple[int | None, int | None, int | None]:
    """Returns the bytes of a candidate, of a learner copy and of a reference, as given or as the model tells."""
    if spec is None:
        return candidate_bytes, model_bytes, model_bytes
    # Brings torch, which takes seconds.
    from preceptor_service import measuring

    references = 2 if spec.cross_reference else 1
    return (
        measuring.candidate_bytes(spec) if candidate_bytes is None else candidate_bytes,
        measuring.weights_bytes(spec, "learner") if model_bytes is None else model_bytes,
        measuring.weights_bytes(spec, "reference") if model_bytes is None else references * model_bytes,
    )


def _table(load: TrainerLoad, measured: Measured, rate: _Rate, found: Sizing) -> Table:
    table = Table(title="What selection needs", box=box.SIMPLE, show_header=False, pad_edge=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim", overflow="fold")
    received = _bytes_text(found.bytes_per_second, "/s")
    by_gateways = "--candidate-bytes" if found.bytes_per_second is None else "--gateway-mb-per-second"
    for name, value, note in (
        ("offered", f"{found.candidates_per_second:,.0f} candidates/s", _offer(load)),
        ("one scorer", f"{measured.candidates_per_second:,.0f} candidates/s", rate.source),
        ("scorers", f"[bold]{found.scorers:,}[/bold]", f"one device each, {found.utilisation:.0%} at work"),
        ("headroom", f"{found.headroom:.0%}", "more candidates than offered"),
        (
            "at most",
            f"{found.steps_per_second:,.3g} steps/s",
            f"{found.selection_s:.3g} s of {load.step_time_s:g} s a step",
        ),
        ("models", _bytes_text(found.model_bytes), _or_give("at each scorer", found.model_bytes, "--model-bytes")),
        ("received", received, _or_give("by all gateways", found.bytes_per_second, "--candidate-bytes")),
        (
            "gateways",
            "–" if found.gateways is None else f"[bold]{found.gateways:,}[/bold]",
            _or_give(f"{_bytes_text(measured.gateway_bytes_per_second, '/s')} each", found.gateways, by_gateways),
        ),
        ("window", _bytes_text(found.window_bytes), _or_give("of each rank", found.window_bytes, "--candidate-bytes")),
    ):
        table.add_row(name, value, note)
    return table


def _offer(load: TrainerLoad) -> str:
    return f"{load.ranks:,} × {load.super_batch:,} a step; {load.super_batch / load.sub_batch:.3g} for one trained on"


def _or_give(note: str, value: float | None, option: str) -> str:
    return f"give {option}" if value is None else note


def _bytes_text(count: float | None, per: str = "") -> str:
    if count is None:
        return "–"
    for unit, size_of_unit in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size_of_unit:
            return f"{count / size_of_unit:,.3g} {unit}{per}"
    return f"{count:.0f} B{per}"


def _settings(load: TrainerLoad, found: Sizing) -> str:
    """Returns the settings of the service that follow, those that the defaults do not cover, as YAML."""
    defaults = ServiceConfig()
    gateways = found.gateways or 1
    streams = math.ceil(load.ranks / gateways)
    gateway = {
        "replicas": (gateways, 1),
        "max_streams": (streams, defaults.gateway.max_streams),
        "max_streams_per_run": (streams, defaults.gateway.max_streams_per_run),
        "window_bytes": (_whole_mib(found.window_bytes), defaults.gateway.window_bytes),
        "max_super_batch_bytes": (_whole_mib(found.super_batch_bytes), defaults.gateway.max_super_batch_bytes),
        "max_super_batch_rows": (load.super_batch, defaults.gateway.max_super_batch_rows),
    }
    scorer = {"model_bytes": (_whole_mib(found.model_bytes), defaults.scorer.model_bytes)}
    sections = {
        "scorer": {"replicas": found.scorers, **_beyond(scorer)},
        "gateway": _beyond(gateway),
    }
    lines = yaml.safe_dump({name: values for name, values in sections.items() if values}, sort_keys=False)
    return f"# in the service's configuration:\n{lines}".rstrip()


def _beyond(wanted: dict[str, tuple[int, int]]) -> dict[str, int]:
    """Returns the settings that are wanted above their defaults."""
    return {name: value for name, (value, default) in wanted.items() if value > default}


def _whole_mib(count: int | None) -> int:
    """Returns the next whole MiB: what frames the bytes, such as Arrow's schema, has room in it."""
    return 0 if count is None else (count // MIB + 1) * MIB
