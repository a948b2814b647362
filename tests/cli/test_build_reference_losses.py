"""`preceptor build-reference-losses` as an operator runs it, kills it and starts it again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from preceptor_service.cli.main import app
from tests.cli.conftest import TIMEOUT_S, Ran, environment
from tests.reference.examples import IMAGES, arrays, write
from tests.service import digits

Run = Callable[..., Ran]

CONFIG = json.dumps(IMAGES.config)
ROWS = 700


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set of 100 row groups, and weights."""
    folder = tmp_path_factory.mktemp("inputs")
    write(folder / "pool.parquet", arrays(IMAGES, ROWS), example_id=list(range(ROWS)))
    save_file(digits.weights(7), folder / "weights.safetensors")
    return folder


@pytest.fixture(scope="module")
def arguments(inputs: Path) -> list[str]:
    return [
        "--data", str(inputs / "pool.parquet"), "--weights", str(inputs / "weights.safetensors"),
        "--model-config", CONFIG, "--pool", "in-process", "--part-rows", "7",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(preceptor: Run, arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of a job that nothing interrupted."""
    table = tmp_path_factory.mktemp("whole") / "losses.parquet"
    ran = preceptor("build-reference-losses", str(table), *arguments)
    assert (ran.code, ran.err) == (0, "")
    return table


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_interrupted_or_killed_it_goes_on_to_the_same_table(
    number: signal.Signals, preceptor: Run, repository: Path, arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    table, parts = tmp_path / "losses.parquet", tmp_path / "losses.parquet.parts"
    process = subprocess.Popen(
        [sys.executable, "-m", "preceptor_service", "build-reference-losses", str(table), *arguments],
        env=environment(repository),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    pause = threading.Event()
    for _ in range(int(TIMEOUT_S / 0.005)):
        if len(list(parts.glob("part-*.parquet"))) > 1 or process.poll() is not None:
            break
        pause.wait(0.005)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    if number == signal.SIGINT:
        assert complaint == f"preceptor: stopped; the same command goes on from the parts in {parts}\n"
    assert not table.exists()
    kept = len(list(parts.glob("part-*.parquet")))
    assert 1 < kept < 100

    ended = preceptor("build-reference-losses", str(table), *arguments)

    assert (ended.code, ended.err) == (0, "")
    assert f"{ROWS:,} reference losses" in ended.out
    assert table.read_bytes() == whole.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["losses.parquet"]


def test_a_reference_is_taken_with_its_card(inputs: Path, tmp_path: Path) -> None:
    trained, table = tmp_path / "reference", tmp_path / "losses.parquet"
    runner = CliRunner()
    pool = ["--data", str(inputs / "pool.parquet")]
    recipe = ["--model-config", CONFIG, "--epochs", "1", "--batch-rows", "350"]
    assert runner.invoke(app, ["train-reference", str(trained), *pool, *recipe]).exit_code == 0

    built = ["build-reference-losses", str(table), *pool, "--reference", str(trained), "--pool", "in-process"]
    ran = runner.invoke(app, built)

    card = json.loads((trained / "card.json").read_text())
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert f"{ROWS:,} reference losses, mean " in ran.stdout
    assert card["weights"]["digest"].encode() in table.read_bytes()

    damaged = tmp_path / "damaged"
    shutil.copytree(trained, damaged)
    save_file(digits.weights(8), damaged / "reference.safetensors")
    ran = runner.invoke(app, ["build-reference-losses", str(tmp_path / "b"), *pool, "--reference", str(damaged)])
    assert (ran.exit_code, ran.stderr.count("\n")) == (1, 1)
    assert "is not what card.json names" in ran.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "give one of --reference DIRECTORY, as train-reference wrote it, and --weights FILE"),
        (("--reference", "nowhere"), "there is no card.json in nowhere; finish train-reference first"),
        (("--weights", "nowhere"), "model 'small_cnn': in_channels is missing"),
        (("--weights", "nowhere", "--model-config", CONFIG), "there are no weights at nowhere"),
        (("--weights", "x", "--micro-batch-rows", "0"), "--micro-batch-rows is 0; it must be 1 or above"),
        (("--weights", "x", "--scorers", "0"), "--scorers is 0"),
        (("--weights", "x", "--pool", "dask"), "--pool is 'dask'; choose one of ray, in-process"),
        (("--weights", "x", "--device", "tpu"), "--device is 'tpu'; choose one of auto, cpu, cuda"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(options: tuple[str, ...], said: str, inputs: Path, tmp_path: Path) -> None:
    fixed = ["build-reference-losses", str(tmp_path / "losses.parquet"), "--data", str(inputs / "pool.parquet")]
    ran = CliRunner().invoke(app, [*fixed, *options])

    assert ran.exit_code == 1
    assert said in ran.stderr
    assert ran.stderr.startswith("preceptor: ")
    assert ran.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
