"""Draws the dashboards from a service under load, into docs/images.

    python -m tests.observability.pictures [--seconds 90]

Starts Ray, a service with two scorers and a Prometheus here, and trains three runs for so long; half-way one of them
stops pushing for a while, and everybody offers more at once.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from deploy.dashboards.pictures import Line, draw
from preceptor import MemoryBank
from preceptor_service.ray_cluster import RayCluster
from tests.observability.dashboard_files import NAMES, read
from tests.observability.live import VARIABLES, Live, running, write_files
from tests.observability.scrape_settings import of_the_chart
from tests.observability.trainers import Trainer

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
FASHION = Trainer("fashion", rows=128, sub_batch_size=32, pause_s=0.15, settings={"memory_bank": MemoryBank(512)})
LETTERS = Trainer("letters", rows=256, sub_batch_size=64, at_once=4, pause_s=1.0)
STEP_S = 1.0


def main() -> None:
    """Draws every dashboard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90.0, help="how long to train")
    seconds = parser.parse_args().seconds
    cluster = RayCluster()
    import ray

    try:
        known = ray.nodes()  # type: ignore[no-untyped-call]
        nodes = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in known]
        settings = {"name": "preceptor", "scorer": {"replicas": 2, "micro_batch_rows": 64, "num_cpus": 0.1}}
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            with running(folder, write_files(folder), settings, partial(of_the_chart, ray_nodes=nodes)) as live:
                _train(live, seconds)
                _draw_all(live, seconds)
    finally:
        cluster.stop()


def _train(live: Live, seconds: float) -> None:
    trainers, pause = live.trainers, live.trainers.stopped
    trainers.start(live.client, FASHION)
    trainers.start(live.client, LETTERS)
    trainers.start_clumsy(live.client)
    pause.wait(seconds / 2)
    trainers.may_push.clear()
    trainers.start(live.client, replace(FASHION, rank=1, at_once=4, pause_s=0.4))
    pause.wait(seconds / 4)
    trainers.may_push.set()
    pause.wait(seconds / 4)


def _draw_all(live: Live, seconds: float) -> None:
    end = time.time()
    for name in NAMES:
        variables = {**VARIABLES, "run": "fashion"} if name == "run" else VARIABLES

        def ask(query: str, variables: dict[str, str] = variables) -> list[Line]:
            filled_in = re.sub(r"\$(\w+)", lambda variable: variables[variable[1]], query)
            found = live.prometheus.ask_over(filled_in, end - seconds, end, STEP_S)
            return [Line(series.labels, series.times, series.values) for series in found]

        draw(read(name), ask, end - seconds, end, IMAGES / f"dashboard-{name}.png")


if __name__ == "__main__":
    main()
