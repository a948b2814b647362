"""`preceptor size`: from a number, from this machine and from a live run to scorers, gateways and settings."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from preceptor import SelectionClient
from preceptor_service.config import parse_config
from tests.cli.conftest import Ran, Serving
from tests.service import digits

Run = Callable[..., Ran]

TRAINER = ("size", "--super-batch", "3072", "--sub-batch", "1024", "--step-time", "0.8", "--ranks", "8")
SMALL = (
    "--model",
    "small_cnn",
    "--model-config",
    '{"in_channels": 3, "image_size": 32, "num_classes": 10, "width": 8}',
)


def rows(ran: Ran) -> dict[str, str]:
    """What the table says, by its first column; one blank between words."""
    assert (ran.code, ran.err) == (0, "")
    table = ran.out.split("# in the service's configuration:")[0]
    names = ("offered", "one scorer", "scorers", "headroom", "at most", "models", "received", "gateways", "window")
    lines = [" ".join(line.split()) for line in table.splitlines()]
    return {name: line.removeprefix(f"{name} ") for name in names for line in lines if line.startswith(f"{name} ")}


def settings(ran: Ran) -> dict[str, Any]:
    """The settings that it suggests."""
    suggested: dict[str, Any] = yaml.safe_load(ran.out.split("# in the service's configuration:")[1])
    return suggested


def test_a_rate_that_was_measured_gives_scorers_gateways_and_settings(preceptor: Run) -> None:
    ran = preceptor(
        *TRAINER, "--candidates-per-second", "6286", "--candidate-bytes", "30000", "--model-bytes", "2000000000",
        "--gateway-mb-per-second", "290", COLUMNS="80",
    )  # fmt: skip

    assert rows(ran) == {
        "offered": "30,720 candidates/s 8 × 3,072 a step; 3 for one trained on",
        "one scorer": "6,286 candidates/s as given",
        "scorers": "7 one device each, 70% at work",
        "headroom": "43% more candidates than offered",
        "at most": "1.79 steps/s 0.559 s of 0.8 s a step",
        "models": "6 GB at each scorer",
        "received": "922 MB/s by all gateways",
        "gateways": "4 290 MB/s each",
        "window": "184 MB of each rank",
    }
    assert max(map(len, ran.out.splitlines())) <= 80
    config = parse_config(settings(ran))
    assert (config.scorer.replicas, config.gateway.replicas) == (7, 4)
    assert config.scorer.model_bytes >= 6_000_000_000
    assert config.gateway.window_bytes >= 2 * 3072 * 30000
    assert config.gateway.max_super_batch_bytes >= 3072 * 30000


def test_what_is_not_known_is_asked_for_and_not_made_up(preceptor: Run) -> None:
    ran = preceptor(*TRAINER, "--candidates-per-second", "1e6", "--gateway-mb-per-second", "290")

    found = rows(ran)
    assert found["models"] == "– give --model-bytes"
    assert found["gateways"] == found["received"] == found["window"] == "– give --candidate-bytes"
    assert settings(ran) == {"scorer": {"replicas": 1}}


def test_a_model_tells_its_bytes_and_those_of_a_candidate(preceptor: Run) -> None:
    with_reference = rows(preceptor(*TRAINER, "--candidates-per-second", "6286", *SMALL))
    without = rows(preceptor(*TRAINER, "--candidates-per-second", "6286", *SMALL, "--score", "hard_learner"))

    # A candidate is 3 · 32 · 32 bytes and a label of 8.
    assert with_reference["received"].startswith(f"{30_720 * (3072 + 8) / 1e6:.3g} MB/s")
    three, two = (float(found["models"].split()[0]) for found in (with_reference, without))
    assert three / two == pytest.approx(1.5, abs=0.02)


def test_it_measures_this_machine(preceptor: Run) -> None:
    ran = preceptor(
        "size", "--super-batch", "64", "--sub-batch", "16", "--step-time", "100", "--measure", "--interval", "0.2",
        "--device", "cpu", "--micro-batch-rows", "32", *SMALL,
    )  # fmt: skip

    rate, unit, *source = rows(ran)["one scorer"].split()
    assert float(rate.replace(",", "")) > 1
    assert (unit, " ".join(source)) == ("candidates/s", "measured on this machine's CPU")
    assert settings(ran) == {"scorer": {"replicas": 1}}


def test_it_reads_a_live_run(preceptor: Run, service: Serving) -> None:
    target = f"127.0.0.1:{service.port()}"
    ended = threading.Event()
    with SelectionClient(target) as client:
        run = client.create_run(digits.spec("sized", score="uniform", selector="uniform"))

        def train() -> None:
            step = 0
            while not ended.is_set():
                step += 1
                run.select(digits.candidates(step), sub_batch_size=4, step=step)

        trainer = threading.Thread(target=train)
        trainer.start()
        try:
            ran = preceptor(*TRAINER, "--target", target, "--run", "sized", "--interval", "1", "--scorers", "2")
        finally:
            ended.set()
            trainer.join(60)
        assert rows(ran)["one scorer"].endswith("of run sized, if it kept scorers busy")
        assert float(rows(ran)["one scorer"].split()[0].replace(",", "")) > 1
        idle = preceptor(*TRAINER, "--target", target, "--run", "sized", "--interval", "0.1")
    assert idle.code == 1
    assert f"run 'sized' was offered no candidates at {target} for 0." in idle.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "0 sources of candidates per second are given; give one of --candidates-per-second, --measure and"),
        (["--candidates-per-second", "1", "--measure"], "2 sources of candidates per second are given"),
        (["--candidates-per-second", "0"], "candidates_per_second is 0; it must be above 0, and finite"),
        (["--candidates-per-second", "1", "--utilisation", "0"], "target_utilisation is 0; it must be above 0 and"),
        (["--candidates-per-second", "1", "--ranks", "0"], "ranks is 0; it must be 1 or above"),
        (["--candidates-per-second", "1", "--interval", "nan"], "--interval is nan; it is seconds, above 0"),
        (["--measure"], "--measure needs --model"),
        (["--measure", "--model", "vgg"], "model is 'vgg'; this service knows ['causal_lm', "),
        (["--measure", "--model", "small_cnn", "--model-config", "{"], "--model-config is not JSON: "),
        (["--measure", "--model", "small_cnn", "--model-config", "[]"], "--model-config is '[]'; give an object"),
        (["--measure", *SMALL, "--device", "tpu"], "--device is 'tpu'; choose one of auto, cpu, cuda"),
        (["--measure", *SMALL, "--micro-batch-rows", "0"], "--micro-batch-rows is 0; it must be 1 or above"),
        (["--measure", *SMALL, "--score", "uniform"], "--score is 'uniform', which scores nothing"),
        (["--measure", *SMALL, "--task", "chess"], "task is 'chess'; choose one of"),
        (["--target", "127.0.0.1:1"], "--target needs --run, the run to read from"),
        (["--target", "127.0.0.1:1", "--run", "a", "--scorers", "0"], "--scorers is 0; it must be 1 or above"),
        (["--target", "127.0.0.1:1", "--run", "a"], "GetRun to 127.0.0.1:1: failed to connect"),
    ],
)
def test_what_cannot_be_sized_is_named(preceptor: Run, arguments: list[str], complaint: str) -> None:
    ran = preceptor(*TRAINER, *arguments)

    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"preceptor: {complaint}")
    assert "Traceback" not in ran.err
