"""`Gateway`: one gateway wired together, whatever runs it and whoever scores for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from wsgiref.simple_server import WSGIServer

from prometheus_client import start_http_server

from preceptor_service.byte_budget import ByteBudget
from preceptor_service.config import ConfigError, ServiceConfig
from preceptor_service.gateway.access import GatewayAccess
from preceptor_service.gateway.admission import Admission
from preceptor_service.gateway.ledger_service import LedgerService
from preceptor_service.gateway.memory_bank_service import MemoryBankService
from preceptor_service.gateway.recorder import Recorder
from preceptor_service.gateway.selection_service import SelectionService
from preceptor_service.gateway.server import GatewayServer
from preceptor_service.gateway.uploads import Uploads
from preceptor_service.gateway.watch import GatewayWatch
from preceptor_service.gateway.weights_service import WeightsService
from preceptor_service.ledger.ledger import Ledger
from preceptor_service.ledger.ledger_store import LedgerStore
from preceptor_service.memory_bank.memory_banks import MemoryBanks
from preceptor_service.metrics import GatewayMetrics
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.pipeline import Pipeline
from preceptor_service.reported_metrics import ReportedMetrics
from preceptor_service.run_store import RunStore
from preceptor_service.runs import RunRegistry
from preceptor_service.scoring.hedging import Hedging
from preceptor_service.scoring.pool import ScorerPool
from preceptor_service.storage import check_storage, open_storage
from preceptor_service.tracing import Tracing
from preceptor_service.weight_store import WeightStore


@dataclass(frozen=True)
class Ports:
    """Where a gateway listens; `metrics` is None where it serves none."""

    grpc: int
    metrics: int | None


class Gateway:
    """Server, pipeline and stores of one gateway. Lives on one event loop; `start` comes first."""

    def __init__(
        self,
        config: ServiceConfig,
        weight_store: WeightStore,
        architectures: ArchitectureRegistry,
        pool: ScorerPool,
        in_flight: ByteBudget,
        tracing: Tracing,
        shares_port: bool,
    ) -> None:
        pool = tracing.gateway_pool(pool)
        self._config = config
        self._pool = pool
        self._tracing = tracing
        metrics = GatewayMetrics()
        run_store = RunStore.open(config.weights)
        storage = open_storage(config.weights)
        ledger_store = LedgerStore(storage, config.ledger)
        self._ledger = Ledger(ledger_store, config.ledger, metrics)
        self._banks = MemoryBanks(storage, config.memory_bank)
        recorder = Recorder(metrics, self._ledger)
        self._runs = runs = RunRegistry(
            config, run_store, weight_store, architectures, pool, self._forget, recorder.co_trained
        )
        hedging = Hedging(config.scorer.hedge_after_s if config.pool == "ray" else None)
        self._pipeline = pipeline = Pipeline(runs, pool, in_flight, config.scorer.micro_batch_timeout_s, hedging)
        admission = Admission(pipeline, config.gateway)
        uploads = Uploads(pipeline, admission, config.gateway)
        self._metrics = metrics
        self._metrics_server: WSGIServer | None = None
        self._watch = GatewayWatch(config, pool, weight_store, in_flight, admission.bodies, metrics)
        self._access = GatewayAccess(config, run_store, weight_store, metrics)
        self._server = GatewayServer(
            SelectionService(
                runs, pipeline, admission, uploads, config.gateway, metrics, recorder, tracing, ReportedMetrics(storage)
            ),
            WeightsService(runs, weight_store, recorder, config.gateway.silence_s),
            LedgerService(runs, self._ledger, ledger_store, config.gateway.silence_s),
            MemoryBankService(runs, pipeline, uploads, self._banks, recorder),
            self._access.guard,
            self._access.tls,
            config.gateway,
            metrics,
            shares_port,
        )

    async def start(self) -> Ports:
        """Listens for trainers and for Prometheus.

        Raises:
            ConfigError: a port is taken, or the store cannot be used from here.
        """
        await asyncio.to_thread(check_storage, self._config.weights)
        metrics_port = self._serve_metrics()
        try:
            ports = Ports(await self._server.start(), metrics_port)
        except ConfigError:
            self._close_metrics()
            raise
        self._access.start()
        self._watch.start()
        self._ledger.start()
        return ports

    async def stop(self) -> None:
        """Finishes what was accepted, then stops listening, and closes the pool and the tracing."""
        await self._server.drain()
        await self._runs.stop()
        await self._ledger.stop()
        await self._banks.stop()
        await self._watch.stop()
        await self._access.stop()
        self._close_metrics()
        self._pipeline.close()
        await self._pool.close()
        await asyncio.to_thread(self._tracing.stop)

    def _forget(self, run_id: str) -> None:
        self._ledger.forget(run_id)
        self._banks.forget(run_id)
        self._metrics.forget_run(run_id)

    def _serve_metrics(self) -> int | None:
        settings = self._config.metrics
        if not settings.enabled:
            return None
        try:
            server, _ = start_http_server(settings.port, settings.host, self._metrics.registry)
        except OSError as error:
            raise ConfigError(
                f"cannot serve metrics on {settings.host}:{settings.port}: {error.strerror}; "
                "choose another with --metrics-port"
            ) from error
        self._metrics_server = server
        return int(server.server_port)

    def _close_metrics(self) -> None:
        if self._metrics_server is not None:
            self._metrics_server.shutdown()
            self._metrics_server.server_close()
            self._metrics_server = None
