"""What the configuration says is what Serve is told."""

from __future__ import annotations

import pytest

from preceptor_service.config import parse_config
from preceptor_service.gateway.deployment import gateway_deployment
from preceptor_service.scoring.ray_scorer import scorer_deployment


def test_scorers_are_a_fixed_number_with_the_configured_share_of_a_machine() -> None:
    settings = parse_config({"scorer": {"replicas": 3, "num_cpus": 2, "max_ongoing": 7}})
    deployment = scorer_deployment(settings, num_gpus=0.5)
    assert deployment.num_replicas == 3
    assert deployment.max_ongoing_requests == 7
    assert deployment.ray_actor_options is not None
    assert (deployment.ray_actor_options["num_cpus"], deployment.ray_actor_options["num_gpus"]) == (2, 0.5)


def test_scorers_scale_between_the_configured_bounds() -> None:
    settings = {"replicas": 2, "max_replicas": 6, "target_load": 5, "upscale_delay_s": 1, "downscale_delay_s": 9}
    deployment = scorer_deployment(parse_config({"scorer": settings}), 0)
    scaling = deployment._deployment_config.autoscaling_config
    assert scaling is not None
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 6, 5)
    assert (scaling.upscale_delay_s, scaling.downscale_delay_s) == (1, 9)
    assert scaling.policy.get_policy().__name__ == "scorers_for_load"


def test_both_take_the_custom_resources_that_place_them() -> None:
    config = parse_config({"gateway": {"resources": {"front": 1}}, "scorer": {"resources": {"back": 0.5}}})
    for deployment, expected in (
        (gateway_deployment(config), {"front": 1}),
        (scorer_deployment(config, 0), {"back": 0.5}),
    ):
        assert deployment.ray_actor_options is not None
        assert deployment.ray_actor_options["resources"] == expected


def test_replicas_have_one_heap_for_all_threads() -> None:
    config = parse_config({})
    for deployment in (gateway_deployment(config), scorer_deployment(config, 0)):
        assert deployment.ray_actor_options is not None
        assert deployment.ray_actor_options["runtime_env"]["env_vars"]["MALLOC_ARENA_MAX"] == "1"


@pytest.mark.parametrize(("num_cpus", "threads", "expected"), [(1, None, 1), (2.5, None, 3), (0.1, None, 1), (4, 2, 2)])
def test_a_scorer_uses_the_threads_that_it_was_given(num_cpus: float, threads: int | None, expected: int) -> None:
    assert parse_config({"scorer": {"num_cpus": num_cpus, "threads": threads}}).scorer.threads_or_default == expected


def test_gateways_are_one_per_node_and_have_time_to_drain() -> None:
    deployment = gateway_deployment(parse_config({"gateway": {"replicas": 2, "drain_s": 7}}))
    assert deployment.num_replicas == 2
    assert deployment._replica_config.max_replicas_per_node == 1
    assert deployment._deployment_config.graceful_shutdown_timeout_s > 7
