"""`preceptor serve`: says where it is, stops cleanly, and names what keeps it from starting."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from preceptor import SelectionClient
from tests.cli.conftest import Ran, Serving, environment
from tests.service import digits

Run = Callable[..., Ran]
Serve = Callable[..., Serving]


def _processes_of_session(leader: int) -> list[str]:
    """The commands of the processes that still live in a session, zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(session) == leader and state != "Z":
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_it_says_where_it_serves_and_stops_cleanly(serve: Serve, tmp_path: Path, number: signal.Signals) -> None:
    serving = serve(tmp_path / "store")
    port = serving.port()
    metrics = serving.wait_for(r"metrics +(http://127\.0\.0\.1:\d+/metrics)\n")[1]
    serving.wait_for(r"Ctrl-C stops it\.\n")
    with SelectionClient(f"127.0.0.1:{port}") as client:
        assert client.list_runs() == []
    with urllib.request.urlopen(metrics, timeout=10) as answer:
        assert b"preceptor_select_streams" in answer.read()
    assert f"store    {tmp_path}/store\n" in serving.out

    assert serving.end(number) == 0
    assert serving.out.endswith("stopped\n")
    assert "Traceback" not in serving.out
    assert _processes_of_session(serving.process.pid) == []
    with closing(socket.socket()) as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_what_it_stored_is_there_the_next_time(serve: Serve, tmp_path: Path) -> None:
    first = serve(tmp_path / "store")
    with SelectionClient(f"127.0.0.1:{first.port()}") as client:
        client.create_run(digits.spec("kept"))
    assert first.end(signal.SIGTERM) == 0
    second = serve(tmp_path / "store")
    with SelectionClient(f"127.0.0.1:{second.port()}") as client:
        assert [run.spec.run_id for run in client.list_runs()] == ["kept"]
    assert second.end(signal.SIGINT) == 0


def test_a_trainer_that_is_connected_does_not_hold_it_up(serve: Serve, tmp_path: Path) -> None:
    serving = serve(tmp_path / "store")
    with SelectionClient(f"127.0.0.1:{serving.port()}") as client:
        run = client.create_run(digits.spec("connected", score="uniform", selector="uniform"))
        run.select(digits.candidates(0), sub_batch_size=4, step=1)
        assert serving.end(signal.SIGINT) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_it_can_be_stopped_while_it_starts(repository: Path, tmp_path: Path, number: signal.Signals) -> None:
    slow = tmp_path / "slow_architectures.py"
    slow.write_text("import threading\nprint('importing', flush=True)\nthreading.Event().wait(60)\ndef build(): ...\n")
    settings = tmp_path / "settings.yaml"
    settings.write_text("architectures:\n  slow: slow_architectures:build\n")
    arguments = ["--pool", "in-process", "--config", str(settings), "--port", "0", "--metrics-port", "0"]
    variables = environment(repository)
    variables["PYTHONPATH"] += os.pathsep + str(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-m", "preceptor_service", "serve", *arguments, "--store", str(tmp_path / "store")],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        starting = Serving(process)
        starting.wait_for("importing")
        assert starting.end(number) == 130
        assert starting.out == "importing\nstopped before it was ready\n"
        assert _processes_of_session(process.pid) == []


def test_it_can_be_interrupted_while_the_command_itself_is_imported(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import threading\nprint('importing', flush=True)\nthreading.Event().wait(60)\n")
    variables = environment(repository)
    variables["PYTHONPATH"] += os.pathsep + str(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-m", "preceptor_service", "serve"],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        starting = Serving(process)
        starting.wait_for("importing")
        assert starting.end(signal.SIGINT) == 130
        assert starting.out == "importing\n"


def test_an_unknown_key_is_named(preceptor: Run, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("gateway:\n  prot: 7600\n")
    ran = preceptor("serve", "--config", str(settings))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "preceptor: the configuration cannot be used:\n  gateway.prot: no such setting\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--config", "nowhere.yaml"], "cannot read nowhere.yaml: No such file or directory\n"),
        (["--pool", "cloud"], "pool: Input should be 'ray' or 'in-process' (is 'cloud')"),
        (["--port", "70000"], "gateway.port: Input should be less than or equal to 65535 (is 70000)"),
        (["--scorers", "0"], "scorer.replicas: Input should be greater than 0 (is 0)"),
        (
            ["--pool", "in-process", "--store", "/dev/null/store"],
            "weights.path is /dev/null/store, which cannot be used",
        ),
    ],
    ids=["config", "pool", "port", "scorers", "store"],
)
def test_a_wrong_flag_is_named(preceptor: Run, arguments: list[str], text: str) -> None:
    ran = preceptor("serve", *arguments)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("preceptor: ")
    assert text in ran.err
    assert "Traceback" not in ran.err


def test_a_taken_port_is_one_line(preceptor: Run, tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        flags = ["--pool", "in-process", "--host", "127.0.0.1", "--store", str(tmp_path)]
        ran = preceptor("serve", *flags, "--port", str(port), "--metrics-port", "0")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        f"preceptor: cannot listen on 127.0.0.1:{port}: Address already in use; choose another with --port\n"
    )


def test_a_ray_that_is_not_there_is_one_line(preceptor: Run, tmp_path: Path) -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))  # bound, so that nobody else listens there, and not listened at
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        ran = preceptor(
            "serve", "--store", str(tmp_path / "store"), "--port", "0", "--metrics-port", "0", RAY_ADDRESS=address
        )
    assert ran.code == 1
    assert ran.err.splitlines()[-1].startswith(f"preceptor: RAY_ADDRESS is '{address}', and no Ray answers there")
    assert "Traceback" not in ran.err
