"""Wiring: a configuration to a running service, on Ray or in this process.

The only place that decides what runs where. Called by the command line, the demo and the tests.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import closing
from typing import Any, Protocol, TypeVar

from preceptor_service.byte_budget import ByteBudget
from preceptor_service.config import ConfigError, ServiceConfig
from preceptor_service.gateway.access import check_access
from preceptor_service.gateway.gateway import Gateway, Ports
from preceptor_service.method_registry import MethodRegistry
from preceptor_service.ray_cluster import RayCluster
from preceptor_service.storage import check_storage
from preceptor_service.tracing import check_tracing, start_tracing

T = TypeVar("T")

_START_TIMEOUT_S = 120.0
_STOP_MARGIN_S = 15.0


class RunningService(Protocol):
    """A service that answers; `stop` ends all that it started, and nothing else."""

    @property
    def ports(self) -> Ports:
        """Where trainers and Prometheus connect."""
        ...

    def stop(self) -> None:
        """Drains and stops. Blocking; safe to call twice."""
        ...


def start_service(config: ServiceConfig) -> RunningService:
    """Starts the service and returns once it answers.

    Raises:
        ConfigError: a port is taken, or a setting does not work here; names the setting.
    """
    config = config.with_absolute_paths()
    if config.pool == "in-process" or os.environ.get("RAY_ADDRESS", "local") == "local":
        _check_here(config)
    _require_free_port(config.gateway.host, config.gateway.port, "--port")
    if config.metrics.enabled:
        _require_free_port(config.metrics.host, config.metrics.port, "--metrics-port")
    return EmbeddedService(config) if config.pool == "in-process" else RayService(config)


class EmbeddedService:
    """Gateway and engine in this process, without Ray.

    Owns one thread, which runs the gateway's event loop.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="preceptor-gateway", daemon=True)
        self._thread.start()
        self._gateway: Gateway | None = None
        try:
            self.ports = self._call(self._start(config)).result(_START_TIMEOUT_S)
        except BaseException:
            self._end_loop()
            raise

    def stop(self) -> None:
        """Drains and stops."""
        if self._gateway is None:
            return
        gateway, self._gateway = self._gateway, None
        self._call(gateway.stop()).result()
        self._end_loop()

    async def _start(self, config: ServiceConfig) -> Ports:
        from preceptor_service.models import ArchitectureRegistry
        from preceptor_service.run_store import RunStore
        from preceptor_service.scoring.engine import ScoringEngine
        from preceptor_service.scoring.in_process import InProcessPool
        from preceptor_service.scoring.run_models import load_committed
        from preceptor_service.weight_store import WeightStore

        weight_store = WeightStore.open(config.weights)
        architectures = ArchitectureRegistry(config.architectures)
        scorer = config.scorer
        try:
            engine = ScoringEngine(
                weight_store,
                architectures,
                device=scorer.device,
                threads=scorer.threads,
                model_bytes=scorer.model_bytes,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        runs, methods = RunStore.open(config.weights), MethodRegistry(config.rules, config.selectors)
        await asyncio.to_thread(load_committed, engine, runs, weight_store, methods, scorer.model_bytes)
        in_flight = ByteBudget(config.gateway.in_flight_bytes)
        tracing = start_tracing(config.tracing)
        pool = tracing.scorer_pool(InProcessPool(engine), engine.device, lambda: "in-process")
        gateway = Gateway(config, weight_store, architectures, pool, in_flight, tracing, shares_port=False)
        ports = await gateway.start()
        self._gateway = gateway
        return ports

    def _call(self, coroutine: Coroutine[None, None, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_TIMEOUT_S)
        self._loop.close()


class RayService:
    """Gateways and scorers as Ray Serve deployments, on a Ray of its own or one that is there already."""

    def __init__(self, config: ServiceConfig) -> None:
        self._name = config.name
        self._drain_timeout_s = config.gateway.drain_s + _STOP_MARGIN_S
        self._gateways: Any = None
        self._cluster: RayCluster | None = RayCluster()
        # Only now: Ray reads the settings that RayCluster makes once, when it is imported.
        from ray import serve

        from preceptor_service.serve_app import build

        try:
            self._gateways = serve.run(build(config.model_dump(mode="json")), name=self._name, route_prefix=None)
            self.ports: Ports = self._gateways.ports.remote().result(timeout_s=_START_TIMEOUT_S)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Drains and stops."""
        if self._cluster is None:
            return
        from ray import serve

        cluster, self._cluster = self._cluster, None
        if self._gateways is not None:
            # First the gateways: Serve ends all deployments at once, and they need scorers to finish.
            drained = self._gateways.broadcast("drain")
            drained.results(timeout_s=self._drain_timeout_s, return_exceptions=True)
        serve.delete(self._name)
        cluster.stop()


def _check_here(config: ServiceConfig) -> None:
    """Raises `ConfigError` for what would fail later, perhaps in another process."""
    check_storage(config.weights)
    check_access(config)
    check_tracing(config.tracing)
    try:
        MethodRegistry(config.rules, config.selectors)
        if config.architectures:
            from preceptor_service.models import ArchitectureRegistry

            ArchitectureRegistry(config.architectures)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _require_free_port(host: str, port: int, option: str) -> None:
    """Raises `ConfigError` where somebody listens already: gateways share ports, so binding would not tell."""
    if port == 0:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another with {option}"
            ) from error
