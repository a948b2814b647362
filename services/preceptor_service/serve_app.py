"""The Ray Serve application, wired: `preceptor serve`, `serve deploy` and the Helm chart all run this one."""

from __future__ import annotations

from typing import Any

import ray
from ray.serve import Application

from preceptor_service.config import parse_config
from preceptor_service.gateway.deployment import gateway_deployment
from preceptor_service.scoring.ray_scorer import scorer_deployment


def build(settings: dict[str, Any]) -> Application:
    """Returns gateways bound to scorers, as `settings` say. The import path of a Serve configuration names it.

    Args:
        settings: a `ServiceConfig` as plain values; in a Serve configuration the application's `args`.

    Raises:
        ConfigError: naming each wrong setting.
    """
    config = parse_config(settings).with_absolute_paths()
    num_gpus = config.scorer.num_gpus
    if num_gpus is None:
        num_gpus = 1.0 if _has_gpu() else 0.0
    plain = config.model_dump(mode="json")
    return gateway_deployment(config).bind(plain, scorer_deployment(config, num_gpus).bind(plain))


def _has_gpu() -> bool:
    """Whether any node of this Ray has a GPU now; one that an autoscaler has yet to start is not seen."""
    resources: dict[str, float] = ray.cluster_resources()
    return resources.get("GPU", 0) >= 1
