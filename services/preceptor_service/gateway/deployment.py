"""`GatewayReplica`: the Ray Serve deployment around one gateway.

Serve sees no request on it: trainers talk to the gateway's own port. It drains when asked, at the
latest in its destructor, which Serve awaits, and shares its port, so that the next replica can take over.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from preceptor_service.byte_budget import ByteBudget
from preceptor_service.config import ServiceConfig, parse_config
from preceptor_service.gateway.gateway import Gateway, Ports
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.process_log import start_logging
from preceptor_service.replica_environment import ENVIRONMENT
from preceptor_service.replica_port import keep_replica_port_local
from preceptor_service.scoring.ray_pool import RayPool
from preceptor_service.tracing import start_tracing
from preceptor_service.weight_store import WeightStore


class GatewayReplica:
    """One gateway on one node.

    Args:
        settings: a `ServiceConfig` as plain values.
        scorers: handle of the `Scorer` deployment.
    """

    _gateway: Gateway | None = None

    async def __init__(self, settings: dict[str, Any], scorers: DeploymentHandle[Any]) -> None:  # type: ignore[misc]
        start_logging()
        keep_replica_port_local()
        config = parse_config(settings)
        in_flight = ByteBudget(config.gateway.in_flight_bytes)
        gateway = Gateway(
            config,
            WeightStore.open(config.weights),
            ArchitectureRegistry(config.architectures),
            RayPool(scorers, in_flight, config.scorer.load_timeout_s),
            in_flight,
            start_tracing(config.tracing),
            shares_port=True,
        )
        self._ports = await gateway.start()
        self._gateway = gateway

    async def ports(self) -> Ports:
        """Returns where this gateway listens."""
        return self._ports

    async def drain(self) -> None:
        """Finishes what was accepted, and stops listening. Safe to repeat."""
        gateway, self._gateway = self._gateway, None
        if gateway is not None:
            await gateway.stop()

    async def __del__(self) -> None:
        await self.drain()


def gateway_deployment(config: ServiceConfig) -> serve.Deployment:
    """Returns the deployment that `config` describes: at most one gateway per node."""
    return serve.deployment(
        name="Gateway",
        num_replicas=config.gateway.replicas,
        max_replicas_per_node=1,
        ray_actor_options={
            "num_cpus": config.gateway.num_cpus,
            "resources": config.gateway.resources,
            "runtime_env": {"env_vars": ENVIRONMENT},
        },
        graceful_shutdown_timeout_s=config.gateway.drain_s + 5,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=0.5,  # with one gateway, trainers wait until its death is noticed
        health_check_timeout_s=10,
    )(GatewayReplica)
