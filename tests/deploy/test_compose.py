"""The compose file: accepted by its specification's schema, closed to the network, in step with the configuration."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from preceptor import SelectionClient, Tls
from preceptor.errors import UnauthenticatedError
from preceptor_service.access.access_file import parse_access, token_hash
from preceptor_service.app import start_service
from preceptor_service.config import ServiceConfig, load_config, parse_config
from tests.outside import run
from tests.service import digits

SERVICES = ("service", "prometheus", "grafana", "trainer")


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    return repository / "deploy/compose"


@pytest.fixture(scope="module")
def compose(folder: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((folder / "compose.yaml").read_text())
    return parsed


@pytest.fixture(scope="module")
def config(folder: Path) -> ServiceConfig:
    return load_config(folder / "preceptor.yaml")


def mounts(compose: dict[str, Any], service: str) -> dict[str, str]:
    """Returns target → source of each mount of a service."""
    parts = [text.split(":") for text in compose["services"][service].get("volumes", [])]
    return {part[1]: part[0] for part in parts}


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_it_follows_the_compose_specification(folder: Path, name: str) -> None:
    checked = run(
        sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", folder / name, cwd=folder
    )

    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_can_write_only_where_it_is_told_to_and_gain_nothing(compose: dict[str, Any], service: str) -> None:
    settings = compose["services"][service]

    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in settings
    writable = [text for text in settings.get("volumes", []) if not text.endswith(":ro")]
    assert {text.split(":")[0] for text in writable} <= set(compose["volumes"])


def test_every_mounted_path_is_in_the_repository_or_made_by_the_script(compose: dict[str, Any], folder: Path) -> None:
    made = set(re.findall(r"secrets/\w+", (folder / "make-secrets.sh").read_text()))
    sources = {source for service in SERVICES for source in mounts(compose, service).values() if source[0] == "."}
    tracked = {source for source in sources if source.removeprefix("./") not in made}

    assert len(sources - tracked) == 3
    for source in tracked:
        listed = run("git", "ls-files", "--", source, cwd=folder)
        assert listed.stdout != "", f"{source} holds nothing that git tracks"


def test_secrets_and_settings_of_one_machine_are_never_committed(repository: Path, folder: Path) -> None:
    for path in ("secrets/gateway/tls.key", ".env"):
        assert run("git", "check-ignore", "--quiet", folder / path, cwd=repository).returncode == 0


def test_every_port_is_published_to_this_machine_alone(compose: dict[str, Any], config: ServiceConfig) -> None:
    published = [port for service in SERVICES for port in compose["services"][service].get("ports", [])]

    assert {port.split(":")[0] for port in published} == {"127.0.0.1"}
    assert compose["services"]["service"]["ports"] == [f"127.0.0.1:{config.gateway.port}:{config.gateway.port}"]
    assert compose["networks"]["scrape"] == {"internal": True}


def test_images_are_named_by_whoever_deploys_and_nowhere_else(compose: dict[str, Any], folder: Path) -> None:
    images = [compose["services"][service]["image"] for service in SERVICES]
    variables = {found[1] for image in images if (found := re.fullmatch(r"\$\{(\w+):[?-].*\}", image))}
    example = dict(re.findall(r"^(\w+)=(.*)$", (folder / ".env.example").read_text(), re.MULTILINE))

    assert len(variables) == len(images)
    assert example == dict.fromkeys(variables, "")
    assert not re.search(r"sha256:[0-9a-f]{8}", (folder / ".env.example").read_text())


def test_it_waits_longer_than_the_drain(compose: dict[str, Any], config: ServiceConfig) -> None:
    grace_s = int(compose["services"]["service"]["stop_grace_period"].removesuffix("s"))

    assert grace_s >= config.gateway.drain_s + 15 + 10  # what app.py adds to the drain, and Ray's end


def test_what_ray_keeps_in_shared_memory_fits_into_it(compose: dict[str, Any], config: ServiceConfig) -> None:
    service = compose["services"]["service"]
    most = int(service["environment"]["RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES"])

    assert service["shm_size"] == "2gb"
    assert 10 * config.gateway.in_flight_bytes < most < 2_000_000_000


def test_the_service_is_closed_and_finds_its_files_where_they_are_mounted(
    compose: dict[str, Any], config: ServiceConfig, secrets: Path
) -> None:
    assert config.tls is not None
    assert config.auth is not None
    assert not config.is_insecure
    mounted = mounts(compose, "service")
    for path in (config.tls.certificate, config.tls.private_key, config.auth.access_file):
        assert mounted[str(path.parent)] == "./secrets/gateway"
        assert (secrets / "gateway" / path.name).is_file()
    assert mounted[str(Path(config.weights.path).parent)] == "store"
    assert compose["services"]["service"]["command"][-1] in mounted
    for service in ("service", "trainer"):
        for name, value in compose["services"][service]["environment"].items():
            if name in ("PRECEPTOR_TLS_CA", "PRECEPTOR_TOKEN_FILE"):
                source = mounts(compose, service)[str(Path(value).parent)].removeprefix("./secrets/")
                assert (secrets / source / Path(value).name).is_file()


def test_prometheus_takes_its_settings_and_scrapes_the_service(
    compose: dict[str, Any], config: ServiceConfig, folder: Path, promtool: Path, tmp_path: Path
) -> None:
    mounted = mounts(compose, "prometheus")
    settings = (folder / "prometheus.yml").read_text()
    (rules,) = yaml.safe_load(settings)["rule_files"]
    here = (folder / mounted[str(Path(rules).parent)]).resolve()
    assert list(here.glob(Path(rules).name)) != []
    (tmp_path / "prometheus.yml").write_text(settings.replace(str(Path(rules).parent), str(here)))

    checked = run(promtool, "check", "config", tmp_path / "prometheus.yml", cwd=tmp_path)

    assert checked.returncode == 0, checked.stdout + checked.stderr
    targets = [target for job in yaml.safe_load(settings)["scrape_configs"] for target in job["static_configs"]]
    assert {"targets": [f"service:{config.metrics.port}"]} in targets
    assert "/etc/prometheus/prometheus.yml" in mounted


def test_grafana_is_provisioned_with_prometheus_and_the_charts_dashboards(
    compose: dict[str, Any], folder: Path
) -> None:
    mounted = mounts(compose, "grafana")
    (source,) = yaml.safe_load((folder / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "grafana/provisioning/dashboards/preceptor.yaml").read_text())["providers"]

    port = compose["services"]["prometheus"]["ports"][0].split(":")[-1]
    assert source["url"] == f"http://prometheus:{port}"
    assert set(compose["services"]["prometheus"]["networks"]) & set(compose["services"]["grafana"]["networks"])
    dashboards = folder / mounted[provider["options"]["path"]]
    assert list(dashboards.resolve().glob("*.json")) != []
    assert mounted["/etc/grafana/provisioning"] == "./grafana/provisioning"
    password = Path(compose["services"]["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD__FILE"])
    assert mounted[str(password.parent)] == "./secrets/grafana"


def test_panels_and_alerts_lead_to_the_runbooks_by_what_the_readme_says(repository: Path, tmp_path: Path) -> None:
    there = tmp_path / "deploy" / "compose"
    there.mkdir(parents=True)
    for part in ("dashboards", "rules"):
        shutil.copytree(repository / "helm" / "preceptor" / part, tmp_path / "helm" / "preceptor" / part)
    commands = re.findall(r"^sed -i .*", (repository / "deploy" / "README.md").read_text(), re.MULTILINE)

    for command in commands:
        assert run("bash", "-c", f"RUNBOOKS=https://docs.example.com; {command}", cwd=there).returncode == 0

    assert len(commands) == 2
    for path in (tmp_path / "helm/preceptor/dashboards").glob("*.json"):
        before = json.loads((repository / "helm/preceptor/dashboards" / path.name).read_text())
        (variable,) = [item for item in before["templating"]["list"] if item["name"] == "runbooks"]
        variable["query"] = "https://docs.example.com/docs/alerts.md"
        assert json.loads(path.read_text()) == before
    rules = yaml.safe_load((tmp_path / "helm/preceptor/rules/alerts.yaml").read_text())
    links = [rule["annotations"]["runbook_url"] for group in rules["groups"] for rule in group["rules"]]
    assert links
    assert all(link.startswith("https://docs.example.com/docs/alerts.md#") for link in links)


def test_the_secrets_are_closed_to_others_and_kept_when_the_script_runs_again(secrets: Path) -> None:
    before = {path: path.read_bytes() for path in secrets.rglob("*") if path.is_file()}

    again = run("bash", secrets.parent / "make-secrets.sh", cwd=secrets.parent, PRECEPTOR_COMMAND="false")

    assert again.returncode == 0, again.stderr
    assert {path: path.read_bytes() for path in secrets.rglob("*") if path.is_file()} == before
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert stat.S_IMODE((secrets / "authority/ca.key").stat().st_mode) == 0o600
    assert len((secrets / "grafana/admin-password").read_text().strip()) == 32
    token = (secrets / "trainer/token").read_text().strip()
    assert token_hash(token) in (secrets / "gateway/access.yaml").read_text()


@pytest.fixture
def own_secrets(secrets: Path, tmp_path: Path) -> Path:
    """A copy of the script and its secrets, to change."""
    shutil.copytree(secrets.parent, tmp_path / "compose")
    return tmp_path / "compose" / "secrets"


def made_again(secrets: Path, repository: Path) -> subprocess.CompletedProcess[str]:
    """Runs the script as whoever has the command `preceptor` on the path."""
    return run(
        "bash", secrets.parent / "make-secrets.sh",
        cwd=secrets.parent,
        PRECEPTOR_COMMAND="preceptor",
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        PYTHONPATH=f"{repository / 'services'}:{repository / 'clients/python'}",
    )  # fmt: skip


def test_a_new_token_ends_the_trainers_and_nobody_elses(own_secrets: Path, repository: Path) -> None:
    access, file = own_secrets / "gateway/access.yaml", own_secrets / "trainer/token"
    old, colleague = file.read_text().strip(), token_hash("a colleague's")
    lines = access.read_text().splitlines()
    line = f"  {colleague}: {{identity: trainer-2, expires: 2099-01-01T00:00:00Z}}  # until the course ends"
    lines.insert(lines.index("identities:"), line)
    access.write_text("\n".join([*lines, "  trainer-2: {roles: {score: ['shared-*']}}"]))
    file.unlink()

    made = made_again(own_secrets, repository)

    assert made.returncode == 0, made.stderr
    new = file.read_text().strip()
    table = parse_access(access.read_bytes(), access)
    assert {digest: owner.identity for digest, owner in table.owners.items()} == {
        token_hash(new): "trainer", colleague: "trainer-2"
    }  # fmt: skip
    assert table.identities.keys() == {"trainer", "trainer-2"}
    assert access.read_text() == "\n".join([*lines, "  trainer-2: {roles: {score: ['shared-*']}}", ""]).replace(
        token_hash(old), token_hash(new)
    )


@pytest.mark.parametrize(
    "tokens",
    [
        "",
        "tokens:  # nobody yet",
        f"tokens:\n    # four spaces\n    {token_hash('other')}: {{identity: other}}",
        f"tokens:\n  {token_hash('old')}: {{expires: 2099-01-01T00:00:00Z, identity: 'trainer'}}",
    ],
)
def test_a_trainer_is_added_to_the_access_file_that_is_there(own_secrets: Path, repository: Path, tokens: str) -> None:
    access = own_secrets / "gateway/access.yaml"
    access.write_text(f"identities:\n  trainer: {{roles: {{push: ['*']}}}}\n{tokens}\n")
    (own_secrets / "trainer/token").unlink()

    made = made_again(own_secrets, repository)

    assert made.returncode == 0, made.stderr
    owners = parse_access(access.read_bytes(), access).owners
    new = token_hash((own_secrets / "trainer/token").read_text().strip())
    assert owners[new].identity == "trainer"
    assert [owner.identity for digest, owner in owners.items() if digest != new] == ["other"] * ("other" in tokens)


@pytest.mark.parametrize(
    "tokens",
    [
        f"tokens:\n  {token_hash('old')}:\n    identity: trainer",
        f"tokens: {{{token_hash('old')}: {{identity: trainer}}}}",
    ],
)
def test_an_access_file_that_the_script_cannot_read_keeps_what_it_says(
    own_secrets: Path, repository: Path, tokens: str
) -> None:
    access = own_secrets / "gateway/access.yaml"
    access.write_text(tokens)
    (own_secrets / "trainer/token").unlink()

    made = made_again(own_secrets, repository)

    assert made.returncode == 1
    assert "nothing was changed there" in made.stderr
    assert access.read_text() == tokens
    assert not (own_secrets / "trainer/token").exists()
    assert list((own_secrets / "authority").glob("new*")) == []


def test_nothing_is_made_before_the_image_has_a_name(folder: Path, tmp_path: Path) -> None:
    script = shutil.copy(folder / "make-secrets.sh", tmp_path)
    shutil.copy(folder / ".env.example", tmp_path / ".env")

    made = run("bash", script, cwd=tmp_path)

    assert made.returncode != 0
    assert "copy .env.example to .env and name the images in it" in made.stderr
    assert not (tmp_path / "secrets").exists()


def test_the_certificate_names_what_the_script_was_told(secrets: Path) -> None:
    openssl = shutil.which("openssl")
    assert openssl is not None
    shown = run(openssl, "x509", "-in", secrets / "gateway/tls.crt", "-noout", "-ext", "subjectAltName", cwd=secrets)

    assert shown.stdout.splitlines()[1].strip() == (
        "DNS:service, DNS:localhost, IP Address:127.0.0.1, DNS:gpu1, IP Address:192.0.2.7"
    )


def test_the_token_opens_the_service_and_nothing_else_does(folder: Path, secrets: Path, tmp_path: Path) -> None:
    text = (folder / "preceptor.yaml").read_text()
    text = text.replace("/etc/preceptor/secrets", str(secrets / "gateway")).replace("/var/lib/preceptor", str(tmp_path))
    settings = yaml.safe_load(text)
    settings["gateway"] |= {"host": "127.0.0.1", "port": 0}
    service = start_service(parse_config({**settings, "metrics": {"enabled": False}, "pool": "in-process"}))
    try:
        target = f"localhost:{service.ports.grpc}"
        tls = Tls((secrets / "trainer/ca.crt").read_bytes())
        token = (secrets / "trainer/token").read_text().strip()
        with SelectionClient(target, tls=tls, token=token) as client:
            client.create_run(digits.spec("composed"))
        with SelectionClient(target, tls=tls) as stranger, pytest.raises(UnauthenticatedError):
            stranger.list_runs()
    finally:
        service.stop()
