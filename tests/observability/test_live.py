"""A real Prometheus scrapes a real service under load: everything has data, nothing fires, until something breaks.

Its rules are the shipped ones, sixty times faster (`rule_files.write_faster`), its scrape settings those of compose.
Tests run in their order here: what they break stays broken, and the last one takes the service away.
"""

from __future__ import annotations

import os
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from preceptor_service.metrics import METRICS
from tests.observability.dashboard_files import NAMES, queries
from tests.observability.known_metrics import names_of
from tests.observability.live import VARIABLES, Files, Live, running, write_files
from tests.observability.queries import metrics_of
from tests.observability.reference_table import FASHION
from tests.observability.scrape_settings import of_compose
from tests.observability.trainers import PUPILS, Trainer

LETTERS = Trainer("letters", rows=256, at_once=5, pause_s=1.5, width=96, settings={"max_staleness_steps": None})
"""Offers more at once than fits into the window, and then rests; its model takes time, and it never falls back."""
ONLY_ON_RAY = {"preceptor_deployment_updating"}
"""Ours, but told by Serve."""
(ALERTS_SHOWN,) = (query for query in queries("overview") if query.panel == "Alerts firing")
"""The only panel that has nothing to show while all is well."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("live")


@pytest.fixture(scope="module")
def files(folder: Path) -> Files:
    return write_files(folder)


@pytest.fixture(scope="module")
def live(folder: Path, files: Files) -> Iterator[Live]:
    settings = {"pool": "in-process", "scorer": {"micro_batch_rows": 64, "threads": 1}}
    with running(folder, files, settings, of_compose) as live:
        live.trainers.start(live.client, FASHION)
        live.trainers.start(live.client, LETTERS)
        live.trainers.start(live.client, PUPILS)
        live.trainers.start_clumsy(live.client)
        yield live


def test_the_gateway_is_a_target_that_is_up(live: Live) -> None:
    live.prometheus.wait_for(
        lambda: [target["health"] for target in live.prometheus.targets()] == ["up"], "the gateway is scraped"
    )


def test_promtool_finds_no_fault_with_what_is_scraped(live: Live, promtool: Path) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{live.service.ports.metrics}/metrics", timeout=10) as answer:
        scraped = answer.read()
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=scraped, capture_output=True, timeout=30, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_every_rule_is_evaluated_without_an_error(live: Live) -> None:
    live.prometheus.wait_for(
        lambda: all(rule["health"] != "unknown" for rule in live.prometheus.rules()), "every rule was evaluated"
    )
    assert {rule["name"]: rule.get("lastError") for rule in live.prometheus.rules() if rule["health"] != "ok"} == {}


def test_every_metric_of_the_table_is_produced(live: Live) -> None:
    for metric in METRICS:
        for name in names_of(metric) - ONLY_ON_RAY:
            live.prometheus.wait_for(lambda: live.prometheus.ask(name), f"{name} is produced")  # noqa: B023
            found = live.prometheus.ask(name)
            assert all(set(metric.labels) <= series.labels.keys() for series in found)


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_has_data(live: Live, name: str) -> None:
    for query in queries(name):
        asked = metrics_of(query.filled_in(VARIABLES))
        on_ray = asked & ONLY_ON_RAY or any(metric.startswith("ray_") for metric in asked)
        if not on_ray and query != ALERTS_SHOWN:
            live.prometheus.wait_for(lambda: live.has_data(query), f"{query} has data")  # noqa: B023


def test_nothing_fires_while_all_is_well(live: Live) -> None:
    rates = "preceptor:super_batches:rate5m"
    worked = f"min(count_over_time({rates}[25s]) and min_over_time({rates}[25s]) > 0) >= 20"
    live.prometheus.wait_for(lambda: live.prometheus.ask(worked), "every trainer has worked for 20 s")
    assert live.prometheus.firing() == {}
    assert live.trainers.failures == []


def test_a_trainer_that_stops_pushing_gets_fallbacks_and_alerts(live: Live) -> None:
    live.trainers.may_push.clear()
    assert live.wait_until_firing("PreceptorLearnerCopyStale")["run"] in ("fashion", "letters")
    assert live.wait_until_firing("PreceptorFallbackActive")["reason"] == "stale"
    live.prometheus.wait_for(lambda: live.has_data(ALERTS_SHOWN), "the dashboard shows it")
    elsewhere = ALERTS_SHOWN.filled_in({**VARIABLES, "job": "another"})
    assert [series.values for series in live.prometheus.ask(elsewhere)] == [[0]]
    live.trainers.may_push.set()
    live.prometheus.wait_for(
        lambda: not {"PreceptorLearnerCopyStale", "PreceptorFallbackActive"} & live.prometheus.firing().keys(),
        "pushing mends it",
        60,
    )


def test_more_work_than_scorers_can_do_alerts(live: Live) -> None:
    for rank in (1, 2):  # while one waits for its last answers, the other offers more
        live.trainers.start(live.client, replace(LETTERS, rank=rank, at_once=12, pause_s=0))
    assert live.wait_until_firing("PreceptorQueueSaturated")["job"] == "preceptor"


def test_a_certificate_that_cannot_be_used_alerts(live: Live, files: Files) -> None:
    scratch = files.certificate.with_suffix(".new")
    scratch.write_bytes(b"half a rotation")
    os.replace(scratch, files.certificate)
    assert live.wait_until_firing("PreceptorCredentialReloadFails")["source"] == "certificate"


def test_a_gateway_that_is_gone_alerts(live: Live) -> None:
    live.trainers.stop()
    live.service.stop()
    assert live.wait_until_firing("PreceptorTargetDown")["job"] == "preceptor"
    live.wait_until_firing("PreceptorAbsent")
