"""`preceptor train-reference` as an operator runs it, interrupts it, kills it and starts it again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from preceptor_service.cli.main import app
from tests.cli.conftest import TIMEOUT_S, Ran, environment
from tests.reference.examples import IMAGES, arrays, write

Run = Callable[..., Ran]

CONFIG = json.dumps(IMAGES.config)
CHECKPOINT, CARD, WEIGHTS = "checkpoint.safetensors", "card.json", "reference.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "examples.parquet", arrays(IMAGES, 400))


@pytest.fixture(scope="module")
def arguments(data: Path) -> list[str]:
    """Enough updates for a signal to come in the middle."""
    return [
        "--data", str(data), "--model-config", CONFIG, "--epochs", "6", "--batch-rows", "8",
        "--checkpoint-interval", "0", "--device", "cpu", "--threads", "1",
    ]  # fmt: skip


def test_it_trains_and_says_where_the_reference_is_and_how_good(preceptor: Run, data: Path, tmp_path: Path) -> None:
    ran = preceptor("train-reference", str(tmp_path), "--data", str(data), "--model-config", CONFIG, "--epochs", "2")

    card = json.loads((tmp_path / CARD).read_text())
    assert (ran.code, ran.err) == (0, "")
    assert "10/10 updates" in ran.out
    assert f"{tmp_path / WEIGHTS}  {card['weights']['digest']}" in ran.out
    assert f"accuracy {card['hold_out']['accuracy']:.1%} (labels), on 40 rows held out" in ran.out


def test_the_demos_clean_part_needs_no_data_and_no_settings(preceptor: Run, tmp_path: Path) -> None:
    ran = preceptor("train-reference", str(tmp_path), "--demo", "digits", "--epochs", "1")

    card = json.loads((tmp_path / CARD).read_text())
    assert (ran.code, ran.err) == (0, "")
    assert card["model_config"] == {"in_channels": 1, "image_size": 8, "num_classes": 10}
    assert card["data"]["rows"] == 240


@pytest.fixture(scope="module")
def whole(preceptor: Run, arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a training that nothing interrupted."""
    directory = tmp_path_factory.mktemp("whole")
    ran = preceptor("train-reference", str(directory), *arguments)
    assert (ran.code, ran.err) == (0, "")
    return directory


@pytest.fixture
def interrupted(repository: Path, arguments: list[str]) -> Callable[[Path, signal.Signals], tuple[int, str]]:
    """Starts the command, sends a signal once it has trained a while, and returns its exit status and complaint."""

    def start(directory: Path, number: signal.Signals) -> tuple[int, str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "preceptor_service", "train-reference", str(directory), *arguments],
            env=environment(repository),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert has_trained(directory / CHECKPOINT, process), "it made no second checkpoint"
            process.send_signal(number)
            _, complaint = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
        return process.returncode, complaint

    return start


def has_trained(checkpoint: Path, process: subprocess.Popen[str]) -> bool:
    """Waits until the checkpoint has been replaced."""
    pause, seen = threading.Event(), set()
    for _ in range(int(TIMEOUT_S / 0.005)):
        if checkpoint.exists():
            seen.add(checkpoint.stat().st_ino)
        if len(seen) > 1 or process.poll() is not None:
            break
        pause.wait(0.005)
    return len(seen) > 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_interrupted_or_killed_it_goes_on_to_the_same_bits(
    number: signal.Signals,
    preceptor: Run,
    interrupted: Callable[[Path, signal.Signals], tuple[int, str]],
    arguments: list[str],
    whole: Path,
    tmp_path: Path,
) -> None:
    code, complaint = interrupted(tmp_path / "stopped", number)
    if number == signal.SIGKILL:
        assert (code, complaint) == (-signal.SIGKILL, "")
    else:
        assert code == 130
        assert complaint == (
            f"preceptor: stopped; the same command goes on from the checkpoint in {tmp_path / 'stopped'}\n"
        )
    assert not (tmp_path / "stopped" / CARD).exists()

    ended = preceptor("train-reference", str(tmp_path / "stopped"), *arguments)

    assert (ended.code, ended.err) == (0, "")
    for name in (CARD, WEIGHTS):
        assert (tmp_path / "stopped" / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == [CARD, WEIGHTS]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "there is no data; give --data PATH, or --demo digits"),
        (("--demo", "cats"), "--demo is 'cats'; choose one of digits, fashion-mnist"),
        (("--demo", "digits", "--data", "x"), "which needs no --data"),
        (("--demo", "digits", "--model-config", '{"in_channels": 3}'), "the model reads image uint8[3, 8, 8]"),
        (("--demo", "digits", "--model-config", "{"), "--model-config is not JSON"),
        (("--demo", "digits", "--model", "vgg"), "model is 'vgg'; this service knows"),
        (("--demo", "digits", "--device", "tpu"), "--device is 'tpu'; choose one of auto, cpu, cuda"),
        (("--demo", "digits", "--threads", "0"), "--threads is 0; it must be 1 or above"),
        (("--demo", "digits", "--fold", "0"), "--fold is 0, and the demo has no example ids that say which half"),
        (("--data", "x", "--fold", "2"), "--fold is 2; it is 0 or 1"),
        (("--data", "nowhere.parquet", "--model-config", CONFIG), "there is no data at nowhere.parquet"),
        (("--data", "x", "--column", "label", "--model-config", CONFIG), "--column is 'label'; give OURS=THEIRS"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["train-reference", str(tmp_path / "out"), *options])

    assert ran.exit_code == 1
    assert said in ran.stderr
    assert ran.stderr.startswith("preceptor: ")
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
