"""`preceptor build-reference-losses`: the reference losses of a whole data set, computed once, as a Parquet table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from preceptor.errors import PreceptorError
from preceptor_service.cli.failing import failed
from preceptor_service.cli.jobs import DEVICES, INTERRUPTED, choice, json_settings, renamed, stopping_by_signals
from preceptor_service.config import ConfigError, load_config
from preceptor_service.reference.errors import JobError

if TYPE_CHECKING:
    from preceptor_service.models import ArchitectureRegistry
    from preceptor_service.reference.losses_job import Scorers
    from preceptor_service.reference.part_scorer import Reference

console = Console()


def build_reference_losses(
    output: Annotated[Path, typer.Argument(help="The Parquet table to write.")],
    data: Annotated[list[Path], typer.Option(help="Parquet file, or a directory of them; may be repeated.")],
    reference: Annotated[Path | None, typer.Option(help="Directory that train-reference wrote.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Or a safetensors file; then --task and --model count.")] = None,
    task: Annotated[str, typer.Option(help="classification, image_text or causal_lm.")] = "classification",
    model: Annotated[str, typer.Option(help="Architecture, as a run names it.")] = "small_cnn",
    model_config: Annotated[str, typer.Option(help="Its settings, as JSON.")] = "{}",
    id_column: Annotated[str, typer.Option(help="Column of example ids: whole numbers or texts.")] = "example_id",
    column: Annotated[
        list[str] | None, typer.Option(help="Where a column is named otherwise: label=fine_label; may be repeated.")
    ] = None,
    pool: Annotated[str, typer.Option(help="ray, or in-process: one scorer in this process.")] = "ray",
    scorers: Annotated[int | None, typer.Option(help="Scorers on Ray; none: one per GPU, or per CPU.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="Of one scorer on a CPU; none: 1 on Ray, else all cores.")] = None,
    micro_batch_rows: Annotated[int, typer.Option(help="Rows of one forward pass, as scorer.micro_batch_rows.")] = 512,
    part_rows: Annotated[int, typer.Option(help="Rows that a kill may cost each scorer.")] = 65_536,
    content_digests: Annotated[
        bool, typer.Option(help="Keep a short digest of each row, so that a run can tell other content under its id.")
    ] = True,
    config: Annotated[
        Path | None, typer.Option(help="The service's settings, for architectures of the operator's own.")
    ] = None,
) -> None:
    """Score a data set once with a reference. Ctrl-C or a kill loses little: the same command goes on."""
    try:
        for option, value in (
            ("--micro-batch-rows", micro_batch_rows), ("--part-rows", part_rows), ("--scorers", scorers),
            ("--threads", threads),
        ):  # fmt: skip
            if value is not None and value < 1:
                raise JobError(f"{option} is {value}; it must be 1 or above")
        wanted = choice("--device", device, DEVICES)
        is_on_ray = choice("--pool", pool, {"ray": True, "in-process": False})
        with stopping_by_signals() as stopping, console.status("starting …") as status:
            # Bring torch, which takes seconds that other commands need not wait.
            from preceptor_service.models import ArchitectureRegistry
            from preceptor_service.reference.losses_job import build_losses
            from preceptor_service.reference.part_scorer import Layout, Scoring
            from preceptor_service.tasks import run_columns

            architectures = load_config(config).architectures
            registry = ArchitectureRegistry(architectures)
            scored_by = _reference(reference, weights, task, model, model_config, registry)
            columns = run_columns(scored_by.task, registry.outline(scored_by.model, scored_by.config))
            names = renamed(column, [wanted_column.name for wanted_column in columns])
            with _scorers(is_on_ray, scorers, wanted) as (score, place):
                status.stop()
                with _bar() as watch:
                    table = build_losses(
                        scored_by,
                        data,
                        Layout(id_column, names),
                        Scoring(
                            micro_batch_rows,
                            place,
                            threads or (1 if is_on_ray else None),
                            architectures,
                            content_digests,
                        ),
                        part_rows,
                        output,
                        score,
                        stopping.is_set,
                        watch,
                    )
    except (JobError, ConfigError, PreceptorError, ValueError) as error:
        raise failed(str(error)) from error
    if table is None:
        sys.stderr.write(f"preceptor: stopped; the same command goes on from the parts in {output}.parts\n")
        raise typer.Exit(INTERRUPTED)
    without = f", {table['rows_without_loss']:,} of them without a loss" if table["rows_without_loss"] else ""
    mean = "" if table["mean_loss"] is None else f", mean {table['mean_loss']:.4f}"
    sys.stdout.write(f"{output}  {table['digest']}\n{table['rows']:,} reference losses{without}{mean}\n")


def _reference(
    directory: Path | None,
    weights: Path | None,
    task: str,
    model: str,
    model_config: str,
    registry: ArchitectureRegistry,
) -> Reference:
    from preceptor_service.reference.output import CARD, WEIGHTS, read_card
    from preceptor_service.reference.part_scorer import read_reference

    if (directory is None) == (weights is None):
        raise JobError("give one of --reference DIRECTORY, as train-reference wrote it, and --weights FILE")
    if weights is not None:
        return read_reference(weights, task, model, json_settings(model_config), registry)
    directory = directory or Path()
    card = read_card(directory)
    if card is None:
        raise JobError(f"there is no {CARD} in {directory}; finish train-reference first, or give --weights")
    found = read_reference(directory / WEIGHTS, card["task"], card["model"], card["model_config"], registry)
    if found.digest != card["weights"]["digest"]:
        raise JobError(f"{directory / WEIGHTS} is not what {CARD} names; train again, or give --weights")
    return found


@contextmanager
def _scorers(
    is_on_ray: bool, count: int | None, device: Literal["auto", "cpu", "cuda"]
) -> Iterator[tuple[Scorers, Literal["cpu", "cuda"]]]:
    """Yields what scores, and on which kind of device; ends the Ray that it started."""
    if not is_on_ray:
        import torch

        from preceptor_service.reference.losses_job import score_here

        yield score_here, _place(device, torch.cuda.is_available(), "this machine")
        return
    from preceptor_service.ray_cluster import RayCluster

    cluster = RayCluster(serves=False)
    try:
        from preceptor_service.reference.ray_scorers import RayScorers, has_gpu

        yield RayScorers(count), _place(device, has_gpu(), "this Ray")
    finally:
        cluster.stop()


def _place(device: Literal["auto", "cpu", "cuda"], has_gpu: bool, where: str) -> Literal["cpu", "cuda"]:
    if device == "cuda" and not has_gpu:
        raise JobError(f"--device is 'cuda', and {where} has no GPU; choose auto or cpu")
    return "cuda" if device != "cpu" and has_gpu else "cpu"


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    columns = (BarColumn(bar_width=16), MofNCompleteColumn(), TextColumn("rows scored"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("scoring", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)
