"""The systemd unit: accepted, closed, and its command run with its environment until it is told to stop."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from preceptor_service.config import ServiceConfig, load_config, parse_config
from tests.cli.conftest import Serving, environment
from tests.outside import run
from tests.prerequisites import lacking

MOST_EXPOSED = 2.0
"""Of systemd's 0 to 10, where up to 2 is called OK."""


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    return repository / "deploy/systemd"


@pytest.fixture(scope="module")
def unit(folder: Path) -> dict[str, list[str]]:
    """Its settings: the values of each, over all sections, in the order of the file."""
    found: dict[str, list[str]] = {}
    for line in (folder / "preceptor.service").read_text().splitlines():
        key, is_setting, value = line.partition("=")
        if is_setting and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def tool(name: str) -> str:
    return shutil.which(name) or lacking(f"{name} (Debian package systemd)")


def test_systemd_accepts_it(folder: Path, tmp_path: Path) -> None:
    text = (folder / "preceptor.service").read_text()
    installed = tmp_path / "preceptor.service"
    installed.write_text(text.replace("/opt/preceptor/bin/preceptor", sys.executable))

    verified = run(tool("systemd-analyze"), "verify", "--man=no", installed, cwd=tmp_path)

    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_systemd_finds_it_little_exposed(folder: Path) -> None:
    analysed = run(
        tool("systemd-analyze"), "security", "--offline=true", f"--threshold={10 * MOST_EXPOSED:.0f}",
        folder / "preceptor.service", cwd=folder,
    )  # fmt: skip

    level = re.search(r"Overall exposure level for preceptor.service: ([\d.]+)", analysed.stdout)
    assert level is not None, analysed.stderr
    assert float(level[1]) <= MOST_EXPOSED
    assert analysed.returncode == 0


def test_it_waits_longer_than_the_drain_and_stops_only_the_main_process(unit: dict[str, list[str]]) -> None:
    (stop_s,) = unit["TimeoutStopSec"]

    assert int(stop_s) >= ServiceConfig().gateway.drain_s + 15 + 10  # what app.py adds to the drain, and Ray's end
    assert (unit["KillSignal"], unit["KillMode"]) == (["SIGTERM"], ["mixed"])


def test_its_user_and_folders_are_made(folder: Path, unit: dict[str, list[str]], tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    shutil.copy(folder / "sysusers.conf", tmp_path / "preceptor.conf")
    made = run(tool("systemd-sysusers"), f"--root={tmp_path}", folder / "sysusers.conf", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    users = [line.split(":") for line in (tmp_path / "etc/passwd").read_text().splitlines()]
    assert [[user[0], user[5], user[6]] for user in users if user[0] in unit["User"]] == [
        ["preceptor", "/var/lib/preceptor", "/usr/sbin/nologin"]
    ]

    if os.geteuid() != 0:
        lacking("root, to give folders to others")
    made = run(tool("systemd-tmpfiles"), f"--root={tmp_path}", "--create", folder / "tmpfiles.conf", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "etc/preceptor").stat().st_mode & 0o777 == 0o750


def test_its_files_land_where_they_are_looked_for(repository: Path, unit: dict[str, list[str]], tmp_path: Path) -> None:
    commands = re.findall(r"^install .*", (repository / "deploy/README.md").read_text(), re.MULTILINE)

    for command in commands:
        here = re.sub(r" /etc/", f" {tmp_path}/etc/", command).replace("-g preceptor ", "")
        installed = run(*shlex.split(here), cwd=repository)
        assert installed.returncode == 0, installed.stderr

    assert {
        str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.*") if path.is_file()
    } == {
        "etc/systemd/system/preceptor.service": 0o644,
        "etc/sysusers.d/preceptor.conf": 0o644,
        "etc/tmpfiles.d/preceptor.conf": 0o644,
        "etc/preceptor/preceptor.yaml": 0o640,
        "etc/preceptor/preceptor.env": 0o640,
    }
    for setting in (unit["ExecStart"][0].split()[-1], unit["EnvironmentFile"][0].removeprefix("-")):
        assert (tmp_path / setting.lstrip("/")).is_file()


def test_its_settings_load_and_keep_store_and_audit_log_in_its_folders(
    folder: Path, unit: dict[str, list[str]]
) -> None:
    config = load_config(folder / "preceptor.yaml")

    assert str(Path(config.weights.path).parent) == f"/var/lib/{unit['StateDirectory'][0]}"
    assert config.audit.file is not None
    assert str(config.audit.file.parent) == f"/var/log/{unit['LogsDirectory'][0]}"
    assert not config.is_insecure


def test_its_settings_for_trainers_elsewhere_load_and_are_closed(folder: Path) -> None:
    text = (folder / "preceptor.yaml").read_text()

    config = parse_config(yaml.safe_load(re.sub(r"^#(?=(?:  )?\w+:)", "", text, flags=re.MULTILINE)))

    assert config.gateway.host == "0.0.0.0"
    assert config.tls is not None
    assert not config.is_insecure


def test_its_command_tells_when_it_is_ready_and_ends_well(
    folder: Path, unit: dict[str, list[str]], repository: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state/preceptor"
    state.mkdir(parents=True)
    logs = tmp_path / "logs"
    logs.mkdir()
    text = (folder / "preceptor.yaml").read_text()
    (tmp_path / "preceptor.yaml").write_text(
        text.replace("/var/lib/preceptor", str(state)).replace("/var/log/preceptor", str(logs))
    )
    program, *arguments = shlex.split(unit["ExecStart"][0].replace("/etc/preceptor", str(tmp_path)))
    assert program == "/opt/preceptor/bin/preceptor"
    variables = dict(word.split("=", 1) for word in shlex.split(" ".join(unit["Environment"])))
    assert unit["WorkingDirectory"] == ["%S/preceptor"]
    given = {name: value.replace("%S", str(tmp_path / "state")) for name, value in variables.items()}

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(120)
        with subprocess.Popen(
            [sys.executable, "-m", "preceptor_service", *arguments, "--pool", "in-process", "--port", "0",
             "--metrics-port", "0"],
            cwd=state,
            env=environment(repository, **given, NOTIFY_SOCKET=str(tmp_path / "notify")),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            umask=int(unit["UMask"][0], 8),
        ) as process:  # fmt: skip
            serving = Serving(process)
            assert manager.recv(100) == b"READY=1"
            serving.port()
            assert serving.end(signal.SIGTERM) == 0
            assert manager.recv(100) == b"STOPPING=1"
    assert (state / "store").is_dir()
    assert (state / "store").stat().st_mode & 0o777 == 0o700
    assert (logs / "audit.jsonl").stat().st_mode & 0o777 == 0o600
    assert unit["Type"] == ["notify"]
