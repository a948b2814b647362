"""`GatewayAccess`: TLS, guard and audit log of one gateway, wired together, and the task that reads files again."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from preceptor_service.access.audit import AuditLog
from preceptor_service.access.authenticator import Authenticator
from preceptor_service.access.watched import keep_fresh
from preceptor_service.config import ServiceConfig
from preceptor_service.gateway.guard import Guard
from preceptor_service.gateway.tls import ServerTls
from preceptor_service.metrics import GatewayMetrics
from preceptor_service.run_access import RunAccess
from preceptor_service.run_store import RunStore
from preceptor_service.weight_store import WeightStore

logger = logging.getLogger(__name__)

_NEVER_S = 30.0


def check_access(config: ServiceConfig) -> None:
    """Reads what `GatewayAccess` reads, before another process does.

    Raises:
        ConfigError: a certificate, the access file or the keys of the identity provider cannot be used.
    """
    if config.tls is not None:
        ServerTls(config.tls, GatewayMetrics())
    Authenticator(config.auth, on_failure=lambda source: None)


class GatewayAccess:
    """What stands between the network and the services. Owns one task, from `start` to `stop`.

    Attributes:
        guard: every rpc passes it.
        tls: None for plaintext.

    Raises:
        ConfigError: a certificate, the access file, the keys of the identity provider or the audit log cannot be used.
    """

    def __init__(
        self, config: ServiceConfig, run_store: RunStore, weight_store: WeightStore, metrics: GatewayMetrics
    ) -> None:
        self.tls = None if config.tls is None else ServerTls(config.tls, metrics)
        self._authenticator = Authenticator(
            config.auth, on_failure=lambda source: metrics.credential_failures.labels(source).inc()
        )
        self._audit = AuditLog(
            config.audit.file, to_standard_error=config.auth is not None, on_failure=metrics.audit_failures.inc
        )
        self.guard = Guard(
            self._authenticator,
            RunAccess(run_store, weight_store, config.limits.max_runs_per_identity),
            self._audit,
            config.limits.max_streams_per_identity,
            config.auth.recheck_s if config.auth is not None else _NEVER_S,
            config.gateway.silence_s,
        )
        self._refreshing: asyncio.Task[None] | None = None
        metrics.insecure.set(config.is_insecure)
        if config.is_insecure:
            logger.warning(
                "anybody who reaches %s may read, push and delete every run: configure tls and auth, "
                "or listen on 127.0.0.1",
                config.gateway.host,
            )

    def start(self) -> None:
        """Begins to look at the files."""
        refreshables = [*self._authenticator.refreshables, *([] if self.tls is None else [self.tls])]
        if refreshables:
            self._refreshing = asyncio.create_task(keep_fresh(refreshables))

    async def stop(self) -> None:
        """Ends that, and closes the audit log."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            with suppress(asyncio.CancelledError):
                await self._refreshing
        self._audit.close()
