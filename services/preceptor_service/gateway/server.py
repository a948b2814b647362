"""The gateway's gRPC server: our services, health, limits and keepalive on one port."""

from __future__ import annotations

from grpc_health.v1 import health_pb2_grpc

from preceptor.wire import CHUNK_BYTES, MESSAGE_OVERHEAD_BYTES, SERVICES
from preceptor_service.config import ConfigError, GatewayConfig
from preceptor_service.gateway.guard import Guard
from preceptor_service.gateway.handlers import rpc_handlers
from preceptor_service.gateway.health_service import HealthService
from preceptor_service.gateway.ledger_service import LedgerService
from preceptor_service.gateway.listening import new_server
from preceptor_service.gateway.memory_bank_service import MemoryBankService
from preceptor_service.gateway.selection_service import SelectionService
from preceptor_service.gateway.tls import ServerTls
from preceptor_service.gateway.weights_service import WeightsService
from preceptor_service.metrics import GatewayMetrics

_QUIET_SHARE = 0.6
"""Share of `silence_s` after which a silent connection is pinged; the rest is for its answer."""
_MIN_CLIENT_PING_MS = 1_000
_READ_AHEAD_BYTES = 1024 * 1024
"""What gRPC takes in of a call before we read it."""
_NO_COMPRESSION = 1
"""The set of algorithms that holds identity alone, as gRPC counts them."""


class GatewayServer:
    """Serves trainers on one event loop until it is drained.

    Args:
        selection: answers trainers.
        weights: takes weights.
        ledger: reads ledgers.
        memory_bank: answers for memory banks.
        guard: lets calls through.
        tls: None for plaintext.
        config: address and limits.
        metrics: counts errors.
        shares_port: whether a replacement may listen on the same port while this one drains.
    """

    def __init__(
        self,
        selection: SelectionService,
        weights: WeightsService,
        ledger: LedgerService,
        memory_bank: MemoryBankService,
        guard: Guard,
        tls: ServerTls | None,
        config: GatewayConfig,
        metrics: GatewayMetrics,
        shares_port: bool,
    ) -> None:
        self._selection = selection
        self._tls = tls
        self._config = config
        names = [service.full_name for service in SERVICES]
        self._health = HealthService(names, config.silence_s)
        quiet_ms, answer_ms = (round(1000 * part * config.silence_s) for part in (_QUIET_SHARE, 1 - _QUIET_SHARE))
        services = dict(zip(names, (selection, weights, ledger, memory_bank), strict=True))
        self._server = new_server(
            options=[
                ("grpc.so_reuseport", int(shares_port)),
                ("grpc.max_receive_message_length", max(config.max_chunk_bytes, CHUNK_BYTES) + MESSAGE_OVERHEAD_BYTES),
                ("grpc.max_send_message_length", -1),
                # A message is as large as it says: gRPC would inflate it before anybody knows who sent it.
                ("grpc.compression_enabled_algorithms_bitset", _NO_COMPRESSION),
                # Where it estimates that by itself, eight busy streams took 300 MB more than their windows.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.http2.lookahead_bytes", _READ_AHEAD_BYTES),
                ("grpc.keepalive_time_ms", quiet_ms),
                # gRPC 1.85 waits for the second of them, a minute by default, and older ones for the first.
                ("grpc.keepalive_timeout_ms", answer_ms),
                ("grpc.http2.ping_timeout_ms", answer_ms),
                ("grpc.http2.min_ping_interval_without_data_ms", _MIN_CLIENT_PING_MS),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", _MIN_CLIENT_PING_MS),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
            handlers=rpc_handlers(services, guard, metrics),
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def start(self) -> int:
        """Listens, and with that is healthy, and returns the port.

        Raises:
            ConfigError: the address is taken or cannot be used.
        """
        address = f"{self._config.host}:{self._config.port}"
        try:
            port: int = (
                self._server.add_insecure_port(address)
                if self._tls is None
                else self._server.add_secure_port(address, self._tls.credentials)
            )
        except RuntimeError as error:
            raise ConfigError(
                f"cannot listen on {address}: the port is taken or not allowed; choose another with --port"
            ) from error
        await self._server.start()
        return port

    async def drain(self) -> None:
        """Reports unhealthy, finishes what was accepted within `drain_s`, and stops."""
        self._health.drain()
        self._selection.drain()
        await self._server.stop(self._config.drain_s)
