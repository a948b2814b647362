"""A service under load with a Prometheus that watches it, as the live tests and the pictures use it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from preceptor import SelectionClient
from preceptor.channel import Tls
from preceptor_service.access.access_file import new_token, token_hash
from preceptor_service.app import RunningService, start_service
from preceptor_service.config import parse_config
from tests.access.certificates import Authority
from tests.observability.dashboard_files import PanelQuery
from tests.observability.prometheus_server import PrometheusServer
from tests.observability.queries import without_stand_in
from tests.observability.reference_table import write_table
from tests.observability.rule_files import write_faster
from tests.observability.scrape_settings import ScrapeConfig
from tests.observability.trainers import Trainers

KIB = 1024
SETTINGS: dict[str, Any] = {
    "gateway": {
        "port": 0,
        "window_bytes": 256 * KIB,
        "max_super_batch_bytes": 128 * KIB,
        "max_chunk_bytes": 16 * KIB,
        "in_flight_bytes": 64 * KIB,
    },
    "metrics": {"port": 0},
    "limits": {"max_runs": 4},
}
"""Small bounds, so that a small load meets them."""

VARIABLES = {
    "namespace": ".*",
    "job": ".+",
    "instance": ".*",
    "run": "fashion|letters|pupils|clumsy",
    "application": ".*",
    "__rate_interval": "15s",
}


@dataclass(frozen=True)
class Files:
    """What a service that knows its callers reads, and a token that it takes."""

    authority: bytes
    token: str
    certificate: Path
    settings: dict[str, Any]


@dataclass(frozen=True)
class Live:
    """All that is running."""

    service: RunningService
    client: SelectionClient
    trainers: Trainers
    prometheus: PrometheusServer

    def has_data(self, query: PanelQuery, seconds: float = 20) -> bool:
        """Whether a panel has a value to show within the last seconds, other than one that stands in for none."""
        now, asked = time.time(), without_stand_in(query.filled_in(VARIABLES))
        found = self.prometheus.ask_over(asked, now - seconds, now, 1)
        return any(np.isfinite(series.values).any() for series in found)

    def wait_until_firing(self, alert: str, timeout_s: float = 40) -> dict[str, str]:
        """The labels of `alert`, once it fires."""
        self.prometheus.wait_for(lambda: alert in self.prometheus.firing(), f"{alert} fires", timeout_s)
        return self.prometheus.firing()[alert]


def write_files(folder: Path) -> Files:
    """Writes a certificate of 90 days, an access file and the table that `FASHION` names."""
    authority, token = Authority(), new_token()
    pair = authority.issue(days=90)
    certificate, key, access = folder / "tls.crt", folder / "tls.key", folder / "access.yaml"
    certificate.write_bytes(pair.certificate)
    key.write_bytes(pair.private_key)
    grants = {"tokens": {token_hash(token): {"identity": "team"}}, "identities": {"team": {"roles": {"admin": ["*"]}}}}
    access.write_text(yaml.safe_dump(grants))
    write_table(folder / "tables")
    settings = {
        "reference_losses": {"directory": str(folder / "tables")},
        "tls": {"certificate": str(certificate), "private_key": str(key)},
        "auth": {"access_file": str(access)},
        "audit": {"file": str(folder / "audit.log")},
        "weights": {"path": str(folder / "store")},
    }
    return Files(authority.pem, token, certificate, settings)


@contextmanager
def running(
    folder: Path, files: Files, settings: dict[str, Any], scraping: Callable[[str], list[ScrapeConfig]]
) -> Iterator[Live]:
    """Starts a service with `settings` over `SETTINGS`, and a Prometheus with the faster rules; nobody trains yet.

    `scraping` returns what to scrape, from the address of the gateway's metrics.
    """
    service = start_service(parse_config({**SETTINGS, **files.settings, **settings}))
    try:
        configs = scraping(f"127.0.0.1:{service.ports.metrics}")
        prometheus = PrometheusServer(folder, configs, write_faster(folder))
        try:
            tls = Tls(root_certificates=files.authority)
            target = f"localhost:{service.ports.grpc}"
            with (
                SelectionClient(target, token=files.token, tls=tls, timeout_s=20) as client,
                Trainers().working() as trainers,
            ):
                yield Live(service, client, trainers, prometheus)
        finally:
            prometheus.stop()
    finally:
        service.stop()
