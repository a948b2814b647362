"""`preceptor train-reference`: a reference from data worth imitating, with a card that says what it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from preceptor_service.reference.dataset import Dataset, Fold
    from preceptor_service.reference.train_job import Model, Watcher
    from preceptor_service.reference.training import Training

_GIB = 1 << 30
_DEMO_MODEL = "small_cnn"

console = Console()


def train_reference(
    output: Annotated[Path, typer.Argument(help="Directory for reference.safetensors and card.json.")],
    data: Annotated[
        list[Path] | None, typer.Option(help="Parquet or Arrow file, or a directory of them; may be repeated.")
    ] = None,
    demo: Annotated[str | None, typer.Option(help="The demo's clean part instead: digits or fashion-mnist.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="Where a column is named otherwise: label=fine_label; may be repeated.")
    ] = None,
    fold: Annotated[
        int | None, typer.Option(help="Train on half of the data, 0 or 1, for a run with cross_reference.")
    ] = None,
    id_column: Annotated[str, typer.Option(help="Column of the example ids that say which half.")] = "example_id",
    task: Annotated[str, typer.Option(help="classification, image_text or causal_lm.")] = "classification",
    model: Annotated[str, typer.Option(help="Architecture, as a run names it.")] = _DEMO_MODEL,
    model_config: Annotated[str, typer.Option(help="Its settings, as JSON.")] = "{}",
    contrast: Annotated[str, typer.Option(help="Loss that image_text trains with: softmax or sigmoid.")] = "softmax",
    epochs: Annotated[int, typer.Option(help="Times that every example is trained on.")] = 20,
    batch_rows: Annotated[int, typer.Option(help="Examples of one update.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="AdamW's at the start; it decays to 0.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Of initial weights, hold-out, order and dropout.")] = 0,
    hold_out: Annotated[float, typer.Option(help="Share of the rows to measure on and not to train on.")] = 0.1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="Of torch on a CPU; none: all cores.")] = None,
    max_gib: Annotated[float, typer.Option(help="Bound on the data, which is held in memory.")] = 8.0,
    checkpoint_interval: Annotated[float, typer.Option(help="Seconds between two checkpoints.")] = 30.0,
    config: Annotated[
        Path | None, typer.Option(help="The service's settings, for architectures of the operator's own.")
    ] = None,
) -> None:
    """Train a reference. Ctrl-C or a kill loses little: the same command goes on, and comes to the same weights."""
    try:
        with stopping_by_signals() as stopping:
            with console.status("reading …"):
                # Bring torch, which takes seconds that other commands need not wait.
                from preceptor_service.models import ArchitectureRegistry
                from preceptor_service.reference import train_job
                from preceptor_service.reference.training import Recipe

                place = choice("--device", device, DEVICES)
                recipe = Recipe(epochs, batch_rows, learning_rate, weight_decay, seed, hold_out)
                _set_threads(threads)
                registry = ArchitectureRegistry(load_config(config).architectures)
                settings = json_settings(model_config)
                half = _fold(fold, id_column, demo)
                if demo is not None:
                    given, found = _demo(demo, seed, data, column)
                    settings = {**given, **settings}
                wanted = train_job.Model(task, model, settings, contrast)
                if demo is None:
                    found = _read(wanted, registry, data, column, max_gib, half)
                else:
                    found = _checked(wanted, registry, found)
            if stopping.is_set():
                raise KeyboardInterrupt
            with _bar() as watch:
                card = train_job.train_reference(
                    wanted,
                    recipe,
                    found,
                    output,
                    registry,
                    place,
                    checkpoint_interval,
                    stopping.is_set,
                    watch,
                    fold,
                )
    except (JobError, ConfigError, PreceptorError, ValueError) as error:
        raise failed(str(error)) from error
    except KeyboardInterrupt as interrupt:
        sys.stderr.write("preceptor: stopped before the training began\n")
        raise typer.Exit(INTERRUPTED) from interrupt
    if card is None:
        sys.stderr.write(f"preceptor: stopped; the same command goes on from the checkpoint in {output}\n")
        raise typer.Exit(INTERRUPTED)
    sys.stdout.write(_summary(output, card))


@contextmanager
def _bar() -> Iterator[Watcher]:
    """Shows a bar over all updates while it lasts, with the last loss and what the last epoch came to."""
    columns = (
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("updates"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=None, note="")

        def watch(training: Training, loss: float | None) -> None:
            note = "" if loss is None else f"loss {loss:.3f}"
            if training.epochs and training.epochs[-1].hold_out_accuracy is not None:
                note += f", hold-out {training.epochs[-1].hold_out_loss:.3f}"
                note += f", {training.epochs[-1].hold_out_accuracy:.1%}"
            progress.update(bar, total=training.updates, completed=training.done, note=note)

        yield watch


def _read(
    model: Model,
    registry: ArchitectureRegistry,
    data: list[Path] | None,
    column: list[str] | None,
    max_gib: float,
    fold: Fold | None,
) -> Dataset:
    from preceptor_service.reference.dataset import read_dataset
    from preceptor_service.reference.train_job import columns_of

    if not data:
        raise JobError("there is no data; give --data PATH, or --demo digits")
    columns = columns_of(model, registry)
    names = renamed(column, [wanted.name for wanted in columns])
    return read_dataset(data, columns, names, int(max_gib * _GIB), fold)


def _fold(number: int | None, id_column: str, demo: str | None) -> Fold | None:
    from preceptor_service.reference.dataset import Fold

    if number is None:
        return None
    if number not in (0, 1):
        raise JobError(f"--fold is {number}; it is 0 or 1")
    if demo is not None:
        raise JobError(f"--fold is {number}, and the demo has no example ids that say which half is which; give --data")
    return Fold(number, id_column)


def _demo(name: str, seed: int, data: list[Path] | None, column: list[str] | None) -> tuple[dict[str, Any], Dataset]:
    """Returns the demo's clean part, and the settings of a model that reads it."""
    from preceptor_service.reference import demo_data
    from preceptor_service.reference.dataset import Dataset

    if data or column:
        raise JobError(f"--demo is {name[:64]!r}, which needs no --data and no --column; give one or the other")
    choice("--demo", name, {known: known for known in demo_data.DATA_SETS})
    try:
        clean = demo_data.load(name, seed).clean
    except (ImportError, demo_data.DataMissingError) as error:
        raise JobError(f"the demo's data is not here: {error}") from error
    settings = {"in_channels": 1, "image_size": clean.image.shape[-1], "num_classes": demo_data.NUM_CLASSES}
    return settings, Dataset({"image": clean.image, "label": clean.label}, len(clean))


def _checked(model: Model, registry: ArchitectureRegistry, found: Dataset) -> Dataset:
    """Returns the demo's data, once the model is known to read it."""
    from preceptor_service.reference.dataset import checked
    from preceptor_service.reference.train_job import columns_of

    columns = columns_of(model, registry)
    for column in columns:
        values = found.columns.get(column.name)
        if values is None or values.shape[1:] != column.shape or values.dtype != column.dtype:
            raise JobError(
                f"the demo has {', '.join(f'{n} {v.dtype}{list(v.shape[1:])}' for n, v in found.columns.items())}; "
                f"the model reads {column.name} {column.dtype}{list(column.shape)}"
            )
    return checked(found.columns, columns)


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is None:
        return
    if threads < 1:
        raise JobError(f"--threads is {threads}; it must be 1 or above")
    torch.set_num_threads(threads)


def _summary(output: Path, card: dict[str, Any]) -> str:
    held_out = card["hold_out"]
    measured = (
        "nothing was held out"
        if held_out["loss"] is None
        else f"loss {held_out['loss']:.4f}, accuracy {held_out['accuracy']:.1%} ({held_out['accuracy_of']}), "
        f"on {held_out['rows']:,} rows held out"
    )
    return f"{output / card['weights']['file']}  {card['weights']['digest']}\n{measured}\n"
