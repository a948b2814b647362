"""What docs/security.md tells an operator to type works."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from preceptor_service.access.access_file import parse_access
from preceptor_service.app import start_service
from preceptor_service.cli.main import app
from preceptor_service.config import parse_config
from tests.access import calls
from tests.prerequisites import lacking
from tests.service.conftest import config


@pytest.fixture(scope="module")
def blocks() -> dict[str, list[str]]:
    """The fenced blocks by language."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "security.md").read_text()
    found: dict[str, list[str]] = {}
    for language, block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL):
        found.setdefault(language, []).append(block)
    return found


def test_the_try_out_certificates_serve(blocks: dict[str, list[str]], tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        lacking("openssl")
    (commands,) = blocks["sh"]
    subprocess.run(["sh", "-e"], input=commands, text=True, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    files = {"certificate": str(tmp_path / "tls.crt"), "private_key": str(tmp_path / "tls.key")}
    service = start_service(config(tmp_path / "store", tls=files))
    try:
        with calls.channel(f"localhost:{service.ports.grpc}", (tmp_path / "ca.crt").read_bytes()) as opened:
            assert calls.answer(opened, "ListRuns", "").code == "OK"
        listed = CliRunner().invoke(
            app, ["runs", "--target", f"localhost:{service.ports.grpc}", "--tls-ca", str(tmp_path / "ca.crt")]
        )
        assert (listed.exit_code, listed.stdout.startswith("no runs at")) == (0, True)
    finally:
        service.stop()


def test_the_settings_and_the_access_file_are_taken(blocks: dict[str, list[str]]) -> None:
    tls, auth, access = blocks["yaml"]
    settings = parse_config({**yaml.safe_load(tls), **yaml.safe_load(auth)})
    assert settings.auth is not None
    assert not settings.is_insecure
    table = parse_access(access.encode(), Path("access.yaml"))
    assert table.grants("team-a").allow("create", "team-a-7")
    assert table.grants("oidc:bob", ("ml-platform",)).allow("admin", "anything")


def test_the_token_command_prints_a_token_and_the_line_that_knows_it() -> None:
    made = CliRunner().invoke(app, ["token", "--identity", "team-a"])
    assert made.exit_code == 0
    token = made.stdout.strip()
    table = parse_access(f"tokens:\n{made.stderr}".encode(), Path("access.yaml"))
    owner = table.owner(token)
    assert owner is not None
    assert owner.identity == "team-a"
    assert token not in made.stderr


@pytest.mark.parametrize("identity", ["oidc:alice", "", "a b", "x: {admin"])
def test_the_token_command_refuses_names_that_are_not_for_tokens(identity: str) -> None:
    made = CliRunner().invoke(app, ["token", "--identity", identity])
    assert made.exit_code == 2
    assert "prc_" not in made.output
