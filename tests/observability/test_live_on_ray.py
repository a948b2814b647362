"""The same with Ray and the chart's PodMonitor: what Serve and Ray tell is there too, and scorers that die alert."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import pytest

from preceptor_service.metrics import METRICS
from preceptor_service.ray_cluster import RayCluster
from tests.observability.dashboard_files import NAMES, queries
from tests.observability.known_metrics import RAY, RAY_ON_GPUS, names_of
from tests.observability.live import VARIABLES, Live, running, write_files
from tests.observability.queries import metrics_of
from tests.observability.reference_table import FASHION
from tests.observability.scrape_settings import of_the_chart
from tests.observability.trainers import PUPILS
from tests.processes import pids_titled

pytestmark = [pytest.mark.ray, pytest.mark.long]

NAME = "observed"
SCORERS = f"ray::ServeReplica:{NAME}:Scorer"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    import ray

    folder = tmp_path_factory.mktemp("live-on-ray")
    cluster = RayCluster()
    try:
        known = ray.nodes()  # type: ignore[no-untyped-call]
        nodes = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in known]
        settings = {"name": NAME, "scorer": {"replicas": 2, "micro_batch_rows": 32, "num_cpus": 0.1}}
        with running(folder, write_files(folder), settings, partial(of_the_chart, ray_nodes=nodes)) as live:
            live.trainers.start(live.client, FASHION)
            live.trainers.start(live.client, PUPILS)
            live.trainers.start_clumsy(live.client)
            yield live
    finally:
        cluster.stop()


def test_gateway_and_node_are_targets_that_are_up(live: Live) -> None:
    live.prometheus.wait_for(
        lambda: [target["health"] for target in live.prometheus.targets()] == ["up", "up"], "both are scraped"
    )


def test_every_metric_of_the_table_is_produced(live: Live) -> None:
    for metric in METRICS:
        for name in names_of(metric):
            live.prometheus.wait_for(lambda: live.prometheus.ask(name), f"{name} is produced")  # noqa: B023


@pytest.mark.parametrize("name", sorted(RAY))
def test_what_we_ask_of_ray_exists_with_its_labels(live: Live, name: str) -> None:
    live.prometheus.wait_for(lambda: live.prometheus.ask(name), f"Ray tells {name}", 60)
    for series in live.prometheus.ask(name):
        assert RAY[name] <= series.labels.keys()


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_has_data(live: Live, name: str) -> None:
    import torch

    for query in queries(name):
        asked = metrics_of(query.filled_in(VARIABLES))
        if (asked & RAY_ON_GPUS.keys() and not torch.cuda.is_available()) or "ALERTS" in asked:
            continue
        live.prometheus.wait_for(lambda: live.has_data(query), f"{query} has data", 60)  # noqa: B023


def test_scorers_that_die_as_soon_as_they_start_alert(live: Live) -> None:
    def kill_and_look() -> bool:
        for pid in pids_titled(SCORERS):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return "PreceptorNoScorers" in live.prometheus.firing()

    live.prometheus.wait_for(kill_and_look, "PreceptorNoScorers fires", 60)
    assert live.prometheus.firing()["PreceptorNoScorers"]["severity"] == "critical"
    live.prometheus.wait_for(
        lambda: "PreceptorNoScorers" not in live.prometheus.firing(), "Serve brings scorers back", 90
    )
