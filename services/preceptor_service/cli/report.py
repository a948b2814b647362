"""`preceptor report`: one page about what a run selected and whether that helped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from preceptor_service.cli.connection import Gateway, asks_gateway
from preceptor_service.cli.failing import failed
from preceptor_service.reference.errors import JobError
from preceptor_service.report.example_data import DataFiles
from preceptor_service.report.gather import gather
from preceptor_service.report.page import render


@asks_gateway
def report(
    gateway: Gateway,
    runs: Annotated[list[str], typer.Argument(help="The run; after it, if you like, the same with other seeds.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")] = Path("report.html"),
    twin: Annotated[
        list[str] | None,
        typer.Option(help="A run with score uniform at the same budget; for several runs one each, in their order."),
    ] = None,
    metric: Annotated[str | None, typer.Option(help="The reported metric that heads the page.")] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Your examples: Parquet or Arrow file, or directory; may be repeated.")
    ] = None,
    id_column: Annotated[str, typer.Option(help="Column of example ids.")] = "example_id",
    image_column: Annotated[str | None, typer.Option(help="Column of images: pixels, or encoded files.")] = None,
    image_shape: Annotated[str | None, typer.Option(help="Of images that are flat lists: 28,28 or 3,32,32.")] = None,
    caption_column: Annotated[str | None, typer.Option(help="Column of texts to show.")] = None,
    class_column: Annotated[
        list[str] | None, typer.Option(help="Column of classes, sources or the like; may be repeated.")
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to read the ledger.")] = 600.0,
) -> None:
    """Write one HTML page: curves, uplift over uniform, scores, examples, classes, cost, and signs of harm."""
    try:
        files = None
        if data:
            shape = None if image_shape is None else _shape(image_shape)
            files = DataFiles(data, id_column, image_column, caption_column, class_column or [], shape)
        with gateway.connect() as client:
            page = render(gather(client, runs, twin or [], files, timeout_s), metric)
    except JobError as error:
        raise failed(str(error)) from error
    out.write_text(page, encoding="utf-8")
    sys.stdout.write(f"{out} tells of run {runs[0]}\n")


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise JobError(f"--image-shape is {text[:64]!r}; give sizes with commas between, such as 28,28")
    return tuple(map(int, sizes))
