"""A real Prometheus of our own: it scrapes each second, evaluates rules each second, and ends with us."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.prerequisites import lacking

_START_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Series:
    """One series of an answer: its labels, and its values over time."""

    labels: dict[str, str]
    times: list[float]
    values: list[float]


class PrometheusServer:
    """Prometheus on a free loopback port, with its data in `folder`.

    Args:
        folder: an empty directory.
        scrape_configs: what to scrape.
        rule_files: rules to evaluate.
    """

    def __init__(self, folder: Path, scrape_configs: Sequence[dict[str, Any]], rule_files: Sequence[Path] = ()) -> None:
        program = shutil.which("prometheus") or lacking("prometheus (Debian package prometheus)")
        config = folder / "prometheus.yml"
        config.write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
                    "rule_files": [str(path) for path in rule_files],
                    "scrape_configs": list(scrape_configs),
                }
            )
        )
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={config}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                    "--log.level=warn",
                ],
                stdout=log,
                stderr=log,
                cwd=folder,
            )
        try:
            self.wait_for(self._is_ready, "Prometheus is ready", _START_TIMEOUT_S)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the process. Safe to call twice."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)

    def ask(self, query: str) -> list[Series]:
        """What a query answers now."""
        found = self._get("query", query=query)
        return [Series(item["metric"], [item["value"][0]], [float(item["value"][1])]) for item in found["result"]]

    def ask_over(self, query: str, start: float, end: float, step_s: float) -> list[Series]:
        """What a query answers from `start` to `end`, both since the epoch."""
        found = self._get("query_range", query=query, start=str(start), end=str(end), step=str(step_s))
        return [
            Series(item["metric"], [at for at, _ in item["values"]], [float(value) for _, value in item["values"]])
            for item in found["result"]
        ]

    def targets(self) -> list[dict[str, Any]]:
        """The targets that are scraped, with their health."""
        active: list[dict[str, Any]] = self._get("targets", state="active")["activeTargets"]
        return active

    def rules(self) -> list[dict[str, Any]]:
        """Every rule, with its health."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def firing(self) -> dict[str, dict[str, str]]:
        """The labels of one firing series of each alert that fires."""
        alerts = self._get("alerts")["alerts"]
        return {alert["labels"]["alertname"]: alert["labels"] for alert in alerts if alert["state"] == "firing"}

    def wait_for(self, condition: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
        """Waits until `condition` holds.

        Raises:
            TimeoutError: it does not; names `what`.
        """
        deadline = time.monotonic() + timeout_s
        pause = threading.Event()
        while not condition():
            if self._process.poll() is not None:
                raise RuntimeError(f"Prometheus ended: {self._log.read_text()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"within {timeout_s:g} s it did not happen that {what}")
            pause.wait(0.2)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as answer:
                return int(answer.status) == 200
        except OSError:
            return False

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{parameters}: {error.read().decode()}") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
