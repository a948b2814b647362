"""What the chart renders really runs: its pods as Ray nodes, its application by `serve deploy`, a trainer beside it."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from preceptor import SelectionClient, Tls
from preceptor.errors import PreceptorError, UnauthenticatedError, UnavailableError
from preceptor_service.access.access_file import new_token, token_hash
from tests.access.certificates import Authority
from tests.helm.pods import Pods, free_port
from tests.helm.rendering import NAMESPACE, RELEASE, Rendering, render
from tests.processes import pids_titled
from tests.ray.candidates import COUNT, expected, ready_run, spec, super_batch
from tests.service.conftest import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(600)]

NAME = f"{RELEASE}-preceptor.{NAMESPACE}.svc"
DETAILS = (
    "import json, sys; from ray.dashboard.modules.serve.sdk import ServeSubmissionClient; "
    "print(json.dumps(ServeSubmissionClient(sys.argv[1]).get_serve_details(), default=str))"
)


@dataclass(frozen=True)
class Site:
    """The chart's cluster on this machine, and what its users hold."""

    rendering: Rendering
    pods: Pods
    token: str
    authority: bytes
    certificate: bytes
    private_key: bytes

    @property
    def target(self) -> str:
        """Where trainers connect."""
        return f"127.0.0.1:{self.rendering.config['gateway']['port']}"

    def client(self, *, token: str | None, has_certificate: bool = True) -> SelectionClient:
        """Returns a client with the rendered TLS settings."""
        private_key, certificate = (self.private_key, self.certificate) if has_certificate else (None, None)
        tls = Tls(self.authority, private_key, certificate, server_name=NAME)
        return SelectionClient(self.target, token=token, tls=tls, timeout_s=60)

    def probe(self, name: str) -> int:
        """Returns the exit status of a rendered probe of the gateways."""
        return self.pods.exec("gateway", self.rendering.container("gateway")[name]["exec"]["command"]).returncode

    def replicas(self, deployment: str) -> list[dict[str, Any]]:
        """Returns Serve's replicas of a deployment, as KubeRay's operator sees them."""
        told = self.pods.exec("head", [sys.executable, "-c", DETAILS, f"http://127.0.0.1:{self.pods.dashboard}"])
        assert told.returncode == 0, told.stderr
        application = json.loads(told.stdout.splitlines()[-1])["applications"]["preceptor"]
        assert application["status"] != "DEPLOY_FAILED", application["message"]
        found: list[dict[str, Any]] = application["deployments"].get(deployment, {}).get("replicas", [])
        return [replica for replica in found if replica["state"] == "RUNNING"]


def _write_credentials(pods: Pods, rendering: Rendering, token: str) -> tuple[Authority, Authority]:
    """Fills the mounted Secrets, and returns the authorities of the gateways and of their clients."""
    servers, clients = Authority("servers"), Authority("clients")
    gateway, probe = servers.issue("gateway", dns=NAME), clients.issue("probe", dns="probe")
    config = rendering.config
    access = {
        "tokens": {token_hash(token): {"identity": "team-a"}},
        "identities": {"team-a": {"roles": {"create": ["team-a-*"]}}},
    }
    secrets = {
        config["tls"]["certificate"]: gateway.certificate,
        config["tls"]["private_key"]: gateway.private_key,
        config["tls"]["client_ca"]: clients.pem,
        str(Path(config["tls"]["certificate"]).with_name("ca.crt")): servers.pem,
        "/etc/preceptor/probe/tls.crt": probe.certificate,
        "/etc/preceptor/probe/tls.key": probe.private_key,
        config["auth"]["access_file"]: yaml.safe_dump(access).encode(),
    }
    for path, content in secrets.items():
        pods.path(path).write_bytes(content)
    return servers, clients


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """The value set `tls` with free ports and small pods, running."""
    changes = {
        "config": {
            "gateway": {"port": free_port(), "drain_s": 5},
            # Gateways share their port here; that of metrics, on an address of its own in a pod, cannot be shared.
            "metrics": {"enabled": False},
            "scorer": {"num_cpus": 1},
        },
        "scorerGroups": {"cpu": {"cpus": 1}},
    }
    rendering = render("tls", changes)
    with tempfile.TemporaryDirectory(prefix="pods-") as folder:
        pods = Pods(rendering, Path(folder))
        token = new_token()
        servers, clients = _write_credentials(pods, rendering, token)
        trainer = clients.issue("trainer", dns="trainer")
        site = Site(rendering, pods, token, servers.pem, trainer.certificate, trainer.private_key)
        try:
            pods.start()
            _deploy(site, Path(folder) / "serve.yaml")
            yield site
        finally:
            pods.stop()


def _deploy(site: Site, file: Path) -> None:
    """Deploys as KubeRay's operator does, and waits for the pods to be ready as the kubelet does."""
    assert site.probe("readinessProbe") == 1
    file.write_text(site.pods.relocated(site.rendering.one("RayService")["spec"]["serveConfigV2"]))
    command = ["serve", "deploy", str(file), "--address", f"http://127.0.0.1:{site.pods.dashboard}"]
    deployed = site.pods.exec("head", command)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    gateways = site.rendering.groups["gateway"]["replicas"]
    wait_until(lambda: len(site.replicas("Gateway")) == gateways and len(site.replicas("Scorer")) == 1, "all run", 180)


def test_the_rendered_probes_find_it_healthy(site: Site) -> None:
    assert {name: site.probe(name) for name in ("startupProbe", "readinessProbe", "livenessProbe")} == {
        "startupProbe": 0,
        "readinessProbe": 0,
        "livenessProbe": 0,
    }


def test_gateways_run_where_gateways_are_expected_and_scorers_elsewhere(site: Site) -> None:
    gateways = [replica["node_id"] for replica in site.replicas("Gateway")]
    scorers = {replica["node_id"] for replica in site.replicas("Scorer")}

    assert len(set(gateways)) == len(gateways) == 2
    assert not scorers & set(gateways)


def test_a_trainer_selects_with_the_rendered_tls_and_token(site: Site) -> None:
    settings = spec("team-a-first")
    with site.client(token=site.token) as client:
        run = ready_run(client, settings)
        for step in range(1, 6):
            assert run.select(super_batch(step), COUNT, step=step).indices.tolist() == expected(settings, step)
    assert any(site.pods.path(site.rendering.config["weights"]["path"]).rglob("*"))


def test_the_log_of_the_pods_says_who_created_what_and_what_a_gateway_refuses(site: Site) -> None:
    with site.client(token=site.token) as client:
        client.create_run(spec("team-a-audited"))
    told = r'"identity": "team-a", .*"method": "CreateRun", "run": "team-a-audited", "code": "OK"'
    wait_until(lambda: re.search(told, site.pods.logs("gateway")) is not None, "the creation is in a log", 10)
    assert len(re.findall(told, site.pods.logs("gateway"))) == 1

    access_file = site.pods.path(site.rendering.config["auth"]["access_file"])
    usable = access_file.read_bytes()
    access_file.write_bytes(b"tokens: nonsense")
    complaint = r"ERROR preceptor_service\.access\.watched\[\d+\]: the changed access file cannot be used"
    wait_until(lambda: re.search(complaint, site.pods.logs("gateway")) is not None, "the complaint is in a log", 10)
    access_file.write_bytes(usable)


def test_strangers_are_refused(site: Site) -> None:
    with site.client(token=None) as client, pytest.raises(PreceptorError):
        client.create_run(spec("team-b-1"))
    with site.client(token=new_token()) as client, pytest.raises(UnauthenticatedError):
        client.create_run(spec("team-a-2"))
    with site.client(token=site.token, has_certificate=False) as client, pytest.raises(UnavailableError):
        client.create_run(spec("team-a-3"))


def test_a_gateway_whose_pod_ends_loses_no_step(site: Site) -> None:
    settings = spec("team-a-drained")
    leaving, _ = (replica["pid"] for replica in site.replicas("Gateway"))
    with site.client(token=site.token) as client:
        run = ready_run(client, settings)
        answers = [run.submit(super_batch(step), COUNT, step=step) for step in range(1, 40)]
        site.pods.terminate(leaving)
        assert leaving not in pids_titled("ray::ServeReplica:preceptor:Gateway")
        answers += [run.submit(super_batch(step), COUNT, step=step) for step in range(40, 60)]
        for step, answer in enumerate(answers, start=1):
            assert answer.result(60).indices.tolist() == expected(settings, step)
    assert site.probe("readinessProbe") == 0
