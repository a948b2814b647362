"""The Serve configuration for a Ray that is there already: keys known, settings ours, and deployed for real."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from preceptor import SelectionClient
from preceptor.errors import UnavailableError
from preceptor_service.config import parse_config
from tests.cli.conftest import environment
from tests.ray.candidates import COUNT, expected, ready_run, spec, super_batch
from tests.service.conftest import wait_until

TIMEOUT_S = 120


@pytest.fixture(scope="module")
def serve_config(repository: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((repository / "deploy/ray/preceptor.yaml").read_text())
    return parsed


def test_serve_knows_every_key(serve_config: dict[str, Any]) -> None:
    from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

    (application,) = serve_config["applications"]

    assert set(serve_config) <= set(ServeDeploySchema.model_fields)
    assert set(application) <= set(ServeApplicationSchema.model_fields)
    checked = ServeDeploySchema.model_validate(serve_config)
    assert checked.proxy_location.value == "Disabled"
    assert checked.applications[0].route_prefix is None


def test_its_arguments_are_the_settings_of_the_service(serve_config: dict[str, Any]) -> None:
    (application,) = serve_config["applications"]

    config = parse_config(application["args"])

    assert config.name == application["name"]
    assert not config.is_insecure
    assert config.gateway.resources == {"preceptor_gateway": 1}


def test_its_builder_makes_gateways_bound_to_scorers(serve_config: dict[str, Any]) -> None:
    from importlib import import_module

    from ray.serve import Application

    (application,) = serve_config["applications"]
    module, _, function = application["import_path"].partition(":")

    assert isinstance(getattr(import_module(module), function)(application["args"]), Application)


@dataclass(frozen=True)
class Cluster:
    """A Ray of one node with token authentication, started as the README says."""

    dashboard: str
    log: Path
    variables: dict[str, str]

    def serve(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).with_name("serve"), *arguments, "--address", self.dashboard],
            env=self.variables, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip

    def status(self) -> str:
        """Returns how the application is, as Serve calls it."""
        told = yaml.safe_load(self.serve("status").stdout)
        return str(told["applications"]["preceptor"]["status"])


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    variables = environment(repository, **token)
    dashboard_port = free_port()
    log = tmp_path_factory.mktemp("ray") / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
             f"--port={free_port()}", f"--dashboard-port={dashboard_port}", "--dashboard-host=127.0.0.1",
             f"--dashboard-agent-listen-port={free_port()}", "--num-cpus=4", '--resources={"preceptor_gateway": 1}',
             f"--object-store-memory={200 << 20}"],
            env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    ours = psutil.Process(process.pid)
    try:
        yield Cluster(f"http://127.0.0.1:{dashboard_port}", log, variables)
    finally:
        started = ours.children(recursive=True)
        process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs([ours, *started], timeout=20)
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(TIMEOUT_S)


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.long
def test_serve_deploys_it_and_a_trainer_selects_through_it(
    cluster: Cluster, serve_config: dict[str, Any], tmp_path: Path
) -> None:
    (application,) = serve_config["applications"]
    port = free_port()
    application["args"]["gateway"]["port"] = port
    application["args"]["metrics"]["port"] = free_port()
    application["args"]["weights"]["path"] = str(tmp_path / "store")
    file = tmp_path / "preceptor.yaml"
    file.write_text(yaml.safe_dump(serve_config))
    wait_until(lambda: cluster.serve("status").returncode == 0, "the dashboard to answer", TIMEOUT_S)
    deployed = cluster.serve("deploy", str(file))
    assert deployed.returncode == 0, f"{deployed.stderr[-2000:]}\n{cluster.log.read_text()}"
    wait_until(lambda: cluster.status() == "RUNNING", "both deployments to run", TIMEOUT_S)

    settings = spec("deployed")
    with SelectionClient(f"127.0.0.1:{port}", timeout_s=TIMEOUT_S) as client:
        run = ready_run(client, settings)
        assert run.select(super_batch(1), COUNT, step=1).indices.tolist() == expected(settings, 1)

    stranger = {name: value for name, value in cluster.variables.items() if name != "RAY_AUTH_TOKEN"}
    refused = Cluster(cluster.dashboard, cluster.log, {**stranger, "HOME": os.devnull}).serve("status")
    assert refused.returncode != 0
    assert cluster.serve("shutdown", "--yes").returncode == 0
    wait_until(lambda: not answers(port), "the gateway to end", TIMEOUT_S)


def answers(port: int) -> bool:
    with SelectionClient(f"127.0.0.1:{port}", timeout_s=5) as client:
        try:
            return client.is_serving()
        except UnavailableError:
            return False
