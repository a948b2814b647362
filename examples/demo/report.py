"""The demo's report: what `preceptor report` writes of the run that selected, beside its uniform twin."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from examples.demo.training import Watcher
from preceptor import Run, SelectionClient
from preceptor_service.reference.demo_data import Parts
from preceptor_service.report.example_data import DataFiles
from preceptor_service.report.gather import gather
from preceptor_service.report.page import render


def reporting(run: Run, watch: Watcher) -> Watcher:
    """Returns a watcher that also tells the service every test accuracy."""

    def told(update: int, accuracy: float | None) -> None:
        if accuracy is not None:
            run.report_metrics(update, {"test_accuracy": accuracy})
        watch(update, accuracy)

    return told


def save(client: SelectionClient, run_id: str, twin_id: str, parts: Parts, path: Path) -> Path:
    """Writes the page of a run whose candidates were `parts.pool`, making its folder, and returns the path."""
    with tempfile.TemporaryDirectory(prefix="preceptor-demo-") as folder:
        data = Path(folder) / "pool.parquet"
        columns = {
            "example_id": parts.pool.example_id,
            "image": pa.FixedShapeTensorArray.from_numpy_ndarray(parts.pool.image),
            "class": parts.pool.label,
            "label": ["wrong" if is_corrupt else "right" for is_corrupt in parts.is_corrupt],
        }
        pq.write_table(pa.table(columns), data)
        files = DataFiles([data], image_column="image", group_columns=["label", "class"])
        page = render(gather(client, [run_id], [twin_id], files))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path
