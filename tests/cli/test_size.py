"""`preceptor size`: from a number, from this machine and from a live run to scorers, gateways and settings."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from preceptor import SelectionClient
from preceptor_service.config import parse_config
from preceptor_service.sizing import TARGET_UTILISATION
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


@pytest.mark.parametrize("options", [(), ("--cross-reference",)])
def test_it_measures_this_machine(preceptor: Run, options: tuple[str, ...]) -> None:
    ran = preceptor(
        "size", "--super-batch", "64", "--sub-batch", "16", "--step-time", "100", "--measure", "--interval", "0.2",
        "--device", "cpu", "--micro-batch-rows", "32", *SMALL, *options,
    )  # fmt: skip

    rate, unit, *source = rows(ran)["one scorer"].split()
    assert float(rate.replace(",", "")) > 1
    assert (unit, " ".join(source)) == ("candidates/s", "measured on this machine's CPU")
    assert settings(ran) == {"scorer": {"replicas": 1}}


@contextmanager
def training(target: str, run_id: str, **settings: Any) -> Iterator[None]:
    """Selects for a new run until the end."""
    ended, begun = threading.Event(), threading.Event()
    with SelectionClient(target) as client:
        run = client.create_run(digits.spec(run_id, **settings))
        if settings.get("score") != "uniform":
            run.push_reference(digits.weights(2))
            run.push_weights(digits.weights(1), step=0)

        def train() -> None:
            for step in itertools.count(1):
                run.select(digits.candidates(step), sub_batch_size=4, step=step)
                if step > 10:
                    begun.set()
                if ended.is_set():
                    return

        trainer = threading.Thread(target=train)
        trainer.start()
        try:
            assert begun.wait(60)
            yield
        finally:
            ended.set()
            trainer.join(60)


def test_it_reads_a_live_run(preceptor: Run, service: Serving) -> None:
    target = f"127.0.0.1:{service.port()}"
    with training(target, "sized"):
        ran = preceptor(*TRAINER, "--target", target, "--run", "sized", "--interval", "1", "--scorers", "2")
    assert rows(ran)["one scorer"].endswith("of run sized at this gateway alone, if it kept scorers busy")
    assert float(rows(ran)["one scorer"].split()[0].replace(",", "")) > 1
    idle = preceptor(*TRAINER, "--run", "sized", "--interval", "0.1", PRECEPTOR_TARGET=target)
    assert idle.code == 1
    assert f"run 'sized' was offered no candidates at {target} for 0." in idle.err


@pytest.mark.parametrize(
    ("run_id", "settings", "complaint"),
    [
        ("draws", {"score": "uniform", "selector": "uniform"}, "the score of run 'draws' is 'uniform', which scores"),
        ("later", {"select_from_step": 1_000_000}, "the schedule of run 'later' has its sub-batches drawn uniformly, "),
        ("held", {"control_fraction": 0.9}, "were held back as its control arm, drawn without scores; read from a run"),
        ("stale", {"max_staleness_steps": 3, "on_stale": "uniform"}, "answers to run 'stale' within 0."),
    ],
)
def test_answers_that_nobody_scored_are_no_measure_of_scorers(
    preceptor: Run, service: Serving, run_id: str, settings: dict[str, Any], complaint: str
) -> None:
    target = f"127.0.0.1:{service.port()}"
    with training(target, run_id, **settings):
        ran = preceptor(*TRAINER, "--target", target, "--run", run_id, "--interval", "0.5")
    assert (ran.code, ran.out) == (1, "")
    assert complaint in ran.err


def test_two_references_take_the_room_of_two(preceptor: Run) -> None:
    given = (*TRAINER, "--candidates-per-second", "6286", *SMALL)
    one, both, told = (
        float(rows(preceptor(*given, *options))["models"].split()[0])
        for options in ([], ["--cross-reference"], ["--cross-reference", "--model-bytes", "2000000000"])
    )
    assert both / one == pytest.approx(4 / 3, abs=0.02)
    assert told == 8


def test_the_document_says_how_busy_scorers_shall_be(repository: Path) -> None:
    document = " ".join((repository / "docs/operations.md").read_text().split())
    assert f"so that scorers work {TARGET_UTILISATION:.0%} of their time (`--utilisation`)" in document


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "none of --candidates-per-second, --measure and --run is given; one has to say how many"),
        (["--target", "127.0.0.1:1"], "none of --candidates-per-second, --measure and --run is given"),
        (["--candidates-per-second", "1", "--measure"], "--candidates-per-second and --measure are given; give one of"),
        (["--candidates-per-second", "0"], "--candidates-per-second is 0; it must be above 0, and finite"),
        (["--candidates-per-second", "1", "--utilisation", "0"], "--utilisation is 0; it must be above 0 and"),
        (["--candidates-per-second", "1", "--ranks", "0"], "--ranks is 0; it must be 1 or above"),
        (["--candidates-per-second", "1", "--sub-batch", "4096"], "--sub-batch is 4096; it is chosen from a --super-"),
        (["--candidates-per-second", "1", "--step-time", "0"], "--step-time is 0; it must be above 0, and finite"),
        (["--candidates-per-second", "1", "--model-bytes", "-1"], "--model-bytes is -1; it must be 0 or above"),
        (["--candidates-per-second", "1", "--gateway-mb-per-second", "-3"], "--gateway-mb-per-second is -3; it must"),
        (["--candidates-per-second", "1", "--interval", "nan"], "--interval is nan; it is seconds, above 0"),
        (["--measure"], "--measure needs --model"),
        (["--measure", "--model", "vgg"], "--model is 'vgg'; this service knows ['causal_lm', "),
        (["--measure", "--model", "small_cnn", "--model-config", "{"], "--model-config is not JSON: "),
        (["--measure", "--model", "small_cnn", "--model-config", "[]"], "--model-config is '[]'; give an object"),
        (["--measure", *SMALL, "--device", "tpu"], "--device is 'tpu'; choose one of auto, cpu, cuda"),
        (["--measure", *SMALL, "--micro-batch-rows", "0"], "--micro-batch-rows is 0; it must be 1 or above"),
        (["--measure", *SMALL, "--score", "uniform"], "--score is 'uniform', which scores nothing"),
        (["--measure", *SMALL, "--task", "chess"], "--task is 'chess'; choose one of"),
        (["--target", "127.0.0.1:1", "--run", "a", "--scorers", "0"], "--scorers is 0; it must be 1 or above"),
        (["--target", "127.0.0.1:1", "--run", "a"], "no service answers at 127.0.0.1:1; start one with"),
    ],
)
def test_what_cannot_be_sized_is_named(preceptor: Run, arguments: list[str], complaint: str) -> None:
    ran = preceptor(*TRAINER, *arguments)

    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"preceptor: {complaint}")
    assert "Traceback" not in ran.err
