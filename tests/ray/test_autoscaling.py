"""Scorers are added for what waits inside gateways, which Serve does not count, and removed when it is gone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from preceptor import SelectionClient
from preceptor_service.app import start_service
from preceptor_service.config import ConfigError, parse_config
from preceptor_service.ray_cluster import RayCluster
from preceptor_service.scoring.ray_autoscaling import GatewayLoad, scorers_for_load
from preceptor_service.serve_app import build
from tests.processes import pids_titled
from tests.ray.candidates import COUNT, expected, ready_run, spec, super_batch
from tests.ray.test_lost_scorer import wait_until


@pytest.mark.parametrize(
    ("under_way", "heard", "target", "scorers"),
    [
        (0.0, None, 4.0, 1),
        (0.0, {}, 4.0, 1),
        (4.0, {"a": 0.0}, 4.0, 1),
        (4.1, {"a": 0.0}, 4.0, 2),
        (4.0, {"a": 8.0, "b": 12.0}, 4.0, 4),  # each hears of every gateway: not 6
        (1.0, {"a": 0.0}, 0.25, 4),
    ],
)
def test_the_load_of_each_scorer_is_brought_down_to_the_target(
    under_way: float, heard: dict[str, float] | None, target: float, scorers: int
) -> None:
    context = SimpleNamespace(
        total_num_requests=under_way,
        aggregated_metrics=None if heard is None else {"waiting": heard},
        config=SimpleNamespace(target_ongoing_requests=target),
    )
    assert scorers_for_load(context) == (scorers, {})  # type: ignore[arg-type]


def test_what_waits_at_several_gateways_adds_up_and_the_latest_word_counts() -> None:
    load = GatewayLoad()
    assert load.waiting() == 0
    load.note("one", 7)
    load.note("two", 3)
    load.note("one", 5)
    assert load.waiting() == 8


def test_the_application_refuses_settings_that_nobody_knows() -> None:
    with pytest.raises(ConfigError, match=r"scorer\.replica: no such setting"):
        build({"scorer": {"replica": 2}})


@pytest.mark.ray
@pytest.mark.long
def test_a_backlog_starts_a_second_scorer_and_its_end_stops_it(ray_cluster: RayCluster, tmp_path: Path) -> None:
    config = parse_config(
        {
            "name": "elastic",
            # One micro-batch at scorers at a time: Serve sees a load of 1, whatever waits in the gateway.
            "gateway": {"host": "127.0.0.1", "port": 0, "in_flight_bytes": 20_000},
            "metrics": {"enabled": False},
            "weights": {"path": str(tmp_path / "store")},
            "scorer": {
                "max_replicas": 2,
                "num_cpus": 0.1,
                "micro_batch_rows": 32,
                "target_load": 3,
                "upscale_delay_s": 0.1,
                "downscale_delay_s": 1,
            },
        }
    )
    title = "ray::ServeReplica:elastic:Scorer"
    service = start_service(config)
    try:
        settings = spec("elastic")
        with SelectionClient(f"127.0.0.1:{service.ports.grpc}", timeout_s=120) as client:
            run = ready_run(client, settings)
            wait_until(lambda: len(pids_titled(title)) == 1, "one scorer")
            step = 0
            while len(pids_titled(title)) < 2 and step < 20_000:
                answers = [run.submit(super_batch(step + ahead), COUNT, step=step + ahead) for ahead in range(40)]
                for ahead, answer in enumerate(answers):
                    assert answer.result(150).indices.tolist() == expected(settings, step + ahead)
                step += 40
            assert len(pids_titled(title)) == 2
            wait_until(lambda: len(pids_titled(title)) == 1, "one scorer again")
    finally:
        service.stop()
