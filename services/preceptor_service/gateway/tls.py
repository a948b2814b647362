"""The gateway's TLS: certificates that are exchanged while it serves."""

from __future__ import annotations

import logging
import time

import grpc

from preceptor_service.access.certificates import CertificatePair, parse_pair
from preceptor_service.access.watched import Watched
from preceptor_service.config import ConfigError, TlsConfig
from preceptor_service.metrics import GatewayMetrics

logger = logging.getLogger(__name__)


class ServerTls:
    """TLS 1.2 or newer with the certificate that the files hold at each handshake; open connections stay.

    Args:
        config: names of the files.
        metrics: shows when the certificate ends, and counts files that cannot be used.

    Raises:
        ConfigError: the files cannot be used.
    """

    def __init__(self, config: TlsConfig, metrics: GatewayMetrics) -> None:
        self._metrics = metrics
        self._is_first = True
        paths = [config.certificate, config.private_key, *([] if config.client_ca is None else [config.client_ca])]
        failures = metrics.credential_failures.labels("certificate")
        self._pair: Watched[CertificatePair] = Watched("certificate", paths, self._parse, failures.inc)
        self._is_first = False
        self._given = self._pair.generation
        self._show_expiry()
        self.credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            self._configuration(), self._changed_configuration, config.client_ca is not None
        )

    def refresh(self) -> None:
        """Looks at the files once. Blocking; never raises."""
        self._pair.refresh()
        self._show_expiry()

    def _parse(self, contents: tuple[bytes, ...]) -> CertificatePair:
        pair = parse_pair(contents)
        if pair.expires_at <= time.time():
            if not self._is_first:
                raise ConfigError("tls.certificate has expired")
            logger.error("tls.certificate has expired: clients will refuse it until its file is replaced")
        return pair

    def _changed_configuration(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC's own threads at each handshake; None keeps what it has."""
        generation = self._pair.generation
        if generation == self._given:
            return None
        self._given = generation
        return self._configuration()

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        pair = self._pair.value
        return grpc.ssl_server_certificate_configuration([(pair.private_key, pair.certificate_chain)], pair.client_ca)

    def _show_expiry(self) -> None:
        self._metrics.certificate_expiry.labels("gateway").set(self._pair.value.expires_at)
