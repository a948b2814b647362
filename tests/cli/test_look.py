"""`preceptor runs`, `status` and the help: what they print, in any width."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from preceptor import RunSpec, SelectionClient
from tests.cli.conftest import Ran, Serving, environment
from tests.service import digits

Run = Callable[..., Ran]

LONG = "fashion-mnist-learnability-vit-tiny-seed-3-temperature-one-half"


@pytest.fixture(scope="module")
def target(service: Serving) -> Iterator[str]:
    """A service with a run that was used, and one with the longest name that was not."""
    target = f"127.0.0.1:{service.port()}"
    with SelectionClient(target) as client:
        used = client.create_run(digits.spec("used", temperature=0.25, seed=11, max_staleness_steps=100))
        used.push_reference(digits.weights(2))
        used.push_weights(digits.weights(1), step=1000)
        for step in (1001, 1002):
            used.select(digits.candidates(step), sub_batch_size=8, step=step)
        client.create_run(digits.spec(LONG, score="hard_learner", selector="top_k"))
        yield target


def _row(ran: Ran, name: str) -> list[str]:
    (line,) = [line for line in ran.out.splitlines() if line.split()[:1] == [name]]
    return line.split()


def test_runs_lists_every_run_and_its_settings(preceptor: Run, target: str) -> None:
    ran = preceptor("runs", "--target", target)
    assert (ran.code, ran.err) == (0, "")
    used = _row(ran, "used")
    assert used[3:9] == ["classification", "small_cnn", "learnability", "softmax", "0.25", "11"]
    assert _row(ran, LONG)[3:] == ["classification", "small_cnn", "hard_learner", "top_k", "0", "–"]


def test_status_once_shows_versions_staleness_and_counts(preceptor: Run, target: str) -> None:
    ran = preceptor("status", "--once", "--target", target)
    assert (ran.code, ran.err) == (0, "")
    with SelectionClient(target) as client:
        seconds = client.get_run("used").status().forward_s
    row = _row(ran, "used")
    assert row[:11] == ["used", "1,002", "1", "2/100", "2", "25.0%", "0", "0", "no", "298%", "never"]
    assert row[11:] == [f"{seconds:,.1f}", "–"]
    assert _row(ran, LONG) == [LONG, "–", "–", "–", "0", "–", "0", "0", "–", "–", "–", "0.0", "–"]


def test_status_says_whether_selection_pays_in_eighty_columns_too(preceptor: Run, target: str) -> None:
    assert _row(preceptor("status", "--once", "--target", target, COLUMNS="80"), "used")[8:] == ["no", "–"]
    with SelectionClient(target) as client:
        pays = client.create_run(digits.spec("pays", learner_flops=1e9))
        pays.push_reference(digits.weights(2))
        pays.push_weights(digits.weights(1), step=0)
        pays.select(digits.candidates(0), sub_batch_size=8, step=0)
        assert _row(preceptor("status", "--once", "--target", target, COLUMNS="80"), "pays")[8:] == ["yes", "–"]
        wide = _row(preceptor("status", "--once", "--target", target, COLUMNS="120"), "pays")
        assert wide[8:11] == ["yes", "54%", "0%"]
        client.delete_run("pays")


@pytest.mark.parametrize("command", [["runs"], ["status", "--once"]], ids=["runs", "status"])
def test_eighty_columns_cut_nothing_off(preceptor: Run, target: str, command: list[str]) -> None:
    ran = preceptor(*command, "--target", target, COLUMNS="80")
    lines = ran.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in ran.out
    start = next(number for number, line in enumerate(lines) if line.strip().startswith(LONG[:8]))
    width = len(lines[start].split()[0])
    folded = [lines[start + part].strip().split()[0] for part in range(-(-len(LONG) // width))]
    assert "".join(folded) == LONG


def test_one_run_is_shown_with_every_setting_and_its_state(preceptor: Run, target: str) -> None:
    ran = preceptor("runs", "used", "--target", target)
    assert (ran.code, ran.err) == (0, "")
    shown = yaml.safe_load(ran.out)
    assert set(shown["settings"]) == {field.name for field in dataclasses.fields(RunSpec)} - {"run_id"}
    assert (shown["run_id"], shown["owner"]) == ("used", None)
    expected = {"deadline_s": None, "on_deadline": "raise", "max_staleness_steps": 100, "on_stale": "uniform"}
    assert expected.items() <= shown["settings"].items()
    assert {"last_step": 1002, "learner_version": 1, "learner_step": 1000, "staleness_steps": 2}.items() <= shown[
        "state"
    ].items()
    assert shown["state"]["cost"]["expected_savings"] == pytest.approx(0.46)
    assert shown["state"]["cost"]["is_positive"] is False
    assert shown["created"] <= shown["last_push"] <= shown["last_answer"]
    assert json.loads(preceptor("runs", "used", "--json", "--target", target).out) == shown
    unused = yaml.safe_load(preceptor("runs", LONG, "--target", target).out)
    assert (unused["last_push"], unused["last_answer"], unused["state"]["staleness_steps"]) == (None, None, None)


def test_an_unknown_run_is_one_line(preceptor: Run, target: str) -> None:
    ran = preceptor("runs", "nobody", "--target", target)
    assert (ran.code, ran.out, ran.err) == (1, "", "preceptor: there is no run 'nobody'; create it first\n")


@pytest.mark.parametrize("command", [["runs"], ["status", "--once"]], ids=["runs", "status"])
def test_programs_get_json_of_every_run(preceptor: Run, target: str, command: list[str]) -> None:
    ran = preceptor(*command, "--json", "--target", target, COLUMNS="20")
    assert (ran.code, ran.err) == (0, "")
    shown = {run["run_id"]: run for run in json.loads(ran.out)}
    assert shown["used"]["state"]["selected"] == 16
    assert shown[LONG]["settings"]["score"] == "hard_learner"


def test_json_is_of_one_look(preceptor: Run, target: str) -> None:
    ran = preceptor("status", "--json", "--target", target)
    assert (ran.code, ran.out, ran.err) == (1, "", "preceptor: --json prints one look; give --once too\n")


@pytest.mark.parametrize("command", [["runs"], ["status", "--once"]], ids=["runs", "status"])
def test_a_pipe_gets_names_whole(repository: Path, target: str, command: list[str]) -> None:
    variables = environment(repository)
    del variables["COLUMNS"]
    ran = subprocess.run(
        [sys.executable, "-m", "preceptor_service", *command, "--target", target],
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert LONG in [line.split()[0] for line in ran.stdout.splitlines() if line.split()]


def test_a_push_ahead_of_the_last_answer_is_not_stale(preceptor: Run, target: str) -> None:
    with SelectionClient(target) as client:
        ahead = client.create_run(digits.spec("ahead", score="hard_learner"))
        ahead.push_weights(digits.weights(1), step=0)
        ahead.select(digits.candidates(1), sub_batch_size=4, step=1)
        ahead.push_weights(digits.weights(3), step=50)
        assert ahead.status().staleness_steps == 0
        assert _row(preceptor("status", "--once", "--target", target), "ahead")[:4] == ["ahead", "1", "2", "0"]
        client.delete_run("ahead")


def test_the_target_may_come_from_the_environment(preceptor: Run, target: str) -> None:
    assert "used" in preceptor("runs", PRECEPTOR_TARGET=target).out


def test_a_service_without_runs_says_so(preceptor: Run, serve: Callable[..., Serving], tmp_path: Path) -> None:
    port = serve(tmp_path / "store").port()
    assert preceptor("runs", "--target", f"127.0.0.1:{port}").out == f"no runs at 127.0.0.1:{port}\n"


def test_status_goes_on_until_it_is_interrupted(repository: Path, target: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "preceptor_service", "status", "--interval", "0.1", "--target", target],
        env=environment(repository, TERM="xterm", FORCE_COLOR="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        watching = Serving(process)
        watching.wait_for(r"(?s)1,002.*1,002.*1,002")
        assert watching.end(signal.SIGINT) == 0
        assert "Traceback" not in watching.out


@pytest.mark.parametrize("command", [["runs"], ["status", "--once"], ["status"]], ids=str)
def test_a_service_that_does_not_answer_is_one_line(preceptor: Run, command: list[str]) -> None:
    ran = preceptor(*command, "--target", "127.0.0.1:1")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("preceptor: no service answers at 127.0.0.1:1; start one with 'preceptor serve'")
    assert ran.err.count("\n") == 1


def test_a_target_that_is_no_address_is_one_line(preceptor: Run) -> None:
    ran = preceptor("runs", "--target", "nonsense")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "preceptor: target is 'nonsense'; give 'host:port', e.g. 'localhost:7600' or '[::1]:7600'\n"


def test_looking_does_not_load_torch_or_ray(preceptor: Run) -> None:
    ran = preceptor("runs", "--target", "nonsense", PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition("|")[2].strip() for line in ran.err.splitlines() if line.startswith("import time:")}
    assert "preceptor_service.cli.main" in imported
    assert not imported & {"torch", "ray", "transformers"}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["serve", "status", "runs", "delete", "config"]),
        (["serve"], ["--config", "--pool", "--host", "--port", "--metrics-port", "--scorers", "--store"]),
        (["status"], ["--target", "--interval", "--once", "localhost:7600"]),
        (["runs"], ["--target", "PRECEPTOR_TARGET", "--tls-name", "--json"]),
        (["delete"], ["--yes", "--target", "--tls-name"]),
        (["size"], ["--run", "PRECEPTOR_TARGET", "--tls-name"]),
        (["ledger", "export"], ["PRECEPTOR_TARGET", "--tls-name"]),
        (["config"], ["YAML"]),
    ],
    ids=["preceptor", "serve", "status", "runs", "delete", "size", "ledger export", "config"],
)
def test_help_names_commands_and_options(preceptor: Run, command: list[str], words: list[str]) -> None:
    ran = preceptor(*command, "--help", COLUMNS="80")
    assert (ran.code, ran.err) == (0, "")
    for word in words:
        assert word in ran.out


def test_an_unknown_command_is_a_usage_error(preceptor: Run) -> None:
    ran = preceptor("guess")
    assert ran.code == 2
    assert "No such command 'guess'" in ran.err
