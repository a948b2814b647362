"""`Scorer`: the Ray Serve deployment around one `ScoringEngine`."""

from __future__ import annotations

import asyncio
from typing import Any

from ray import serve

from preceptor_service.config import ServiceConfig, parse_config
from preceptor_service.method_registry import MethodRegistry
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.process_log import start_logging
from preceptor_service.replica_environment import ENVIRONMENT
from preceptor_service.replica_port import keep_replica_port_local
from preceptor_service.run_store import RunStore
from preceptor_service.scoring.engine import ScoringEngine
from preceptor_service.scoring.in_process import InProcessPool
from preceptor_service.scoring.pool import LoadReport, Losses, MicroBatch, ModelRef, ScoringModels, Trained, Training
from preceptor_service.scoring.ray_autoscaling import POLICY, GatewayLoad
from preceptor_service.scoring.run_models import load_committed
from preceptor_service.scoring.scorer_health import ScorerHealth
from preceptor_service.tracing import Tracing, start_tracing
from preceptor_service.weight_store import WeightStore


class Scorer:
    """One scorer replica. Serve reports it healthy once the committed weights are loaded.

    Args:
        settings: a `ServiceConfig` as plain values.
    """

    _tracing: Tracing | None = None

    def __init__(self, settings: dict[str, Any]) -> None:
        start_logging()
        keep_replica_port_local()
        config = parse_config(settings)
        weight_store = WeightStore.open(config.weights)
        engine = ScoringEngine(
            weight_store,
            ArchitectureRegistry(config.architectures),
            device=config.scorer.device,
            threads=config.scorer.threads_or_default,
            model_bytes=config.scorer.model_bytes,
        )
        self._engine = engine
        self._tracing = start_tracing(config.tracing)
        self._pool = self._tracing.scorer_pool(InProcessPool(engine), engine.device, _replica_id)
        self._health = ScorerHealth(_replica_id, engine.device_works)
        self._load_timeout_s = config.scorer.load_timeout_s
        self._gateway_load = GatewayLoad()
        methods = MethodRegistry(config.rules, config.selectors)
        load_committed(engine, RunStore.open(config.weights), weight_store, methods, config.scorer.model_bytes)

    async def losses(self, models: ScoringModels, batch: MicroBatch, waiting: tuple[str, int]) -> Losses:
        """Returns the losses of one micro-batch; see `ScorerPool.losses`.

        `waiting` names the gateway, and how many more micro-batches wait there.
        """
        self._gateway_load.note(*waiting)
        async with self._health.watching(batch.failed_at):
            return await self._pool.losses(models, batch)

    async def train(self, training: Training) -> Trained:
        """Trains one block of a run's online model; see `ScorerPool.train`."""
        async with self._health.watching():
            return await self._pool.train(training)

    async def check_health(self) -> None:
        """Raises where the device computes nothing any more; after three times Serve replaces this replica."""
        self._health.check()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tells Serve's controller, which asks now and then, what `scorers_for_load` needs."""
        return {"waiting": self._gateway_load.waiting()}

    async def load(self, models: ScoringModels) -> LoadReport:
        """Loads `models` beside what is held; scoring goes on. Reports for this replica alone, in time."""
        try:
            async with asyncio.timeout(self._load_timeout_s):
                return await self._pool.load(models)
        except TimeoutError:
            return LoadReport(loaded=0, asked=1)

    def loaded(self) -> tuple[ModelRef, ...]:
        """Returns the models held now, least recently used first."""
        return self._engine.loaded()

    def __del__(self) -> None:
        if self._tracing is not None:
            self._tracing.stop()


def _replica_id() -> str:
    return str(serve.get_replica_context().replica_id.unique_id)


def scorer_deployment(config: ServiceConfig, num_gpus: float) -> serve.Deployment:
    """Returns the deployment that `config` describes, with `num_gpus` for each replica."""
    scorer = config.scorer
    scaling: dict[str, Any] = {"num_replicas": scorer.replicas}
    if scorer.max_replicas is not None:
        scaling = {
            "autoscaling_config": {
                "min_replicas": scorer.replicas,
                "max_replicas": scorer.max_replicas,
                "target_ongoing_requests": scorer.target_load,
                "upscale_delay_s": scorer.upscale_delay_s,
                "downscale_delay_s": scorer.downscale_delay_s,
                "policy": {"policy_function": POLICY},
            }
        }
    return serve.deployment(
        name="Scorer",
        ray_actor_options={
            "num_cpus": scorer.num_cpus,
            "num_gpus": num_gpus,
            "resources": scorer.resources,
            "runtime_env": {"env_vars": ENVIRONMENT},
        },
        max_ongoing_requests=scorer.max_ongoing,
        graceful_shutdown_timeout_s=config.gateway.drain_s,
        health_check_period_s=2,
        health_check_timeout_s=10,  # three in a row, and a scorer that hangs is replaced
        **scaling,
    )(Scorer)
