"""`preceptor report` on runs that really trained: two references, steps held back, and a uniform twin."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from examples.demo.training import ARCHITECTURE, RECIPES, image_flops, model_config, train_learner, train_reference
from preceptor import RunSpec, SelectionClient
from preceptor_service.cli.main import app
from preceptor_service.reference.demo_data import load
from tests.cli.conftest import Ran, Serving, preceptor, serve
from tests.report.pages import Page

__all__ = ["preceptor", "serve"]  # fixtures

pytestmark = pytest.mark.slow
RECIPE = replace(
    RECIPES["digits"], updates=80, reference_updates=120, evaluate_every=10, learner_width=16, online_width=8
)


@dataclass(frozen=True)
class Trained:
    """Where the runs are, and the user's own data."""

    target: str
    data: Path


@pytest.fixture(scope="module")
def trained(serve: Callable[..., Serving], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The runs `good`, whose reference saw clean labels and which holds steps back, `poor`, and `uniform`.

    The gateway was started anew since: what was reported and the ledger outlive it.
    """
    folder, parts = tmp_path_factory.mktemp("report"), load("digits", 0)
    table = {
        "example_id": parts.pool.example_id,
        "image": parts.pool.image.tolist(),
        "label": parts.pool.label,
        "given": ["wrong" if is_corrupt else "right" for is_corrupt in parts.is_corrupt],
    }
    pq.write_table(pa.table(table), folder / "data.parquet")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    online = model_config(8, RECIPE.online_width)
    served = serve(folder / "store")
    target = f"127.0.0.1:{served.port()}"
    with SelectionClient(target) as client:
        settings: dict[str, dict[str, Any]] = {
            "good": {"control_fraction": 0.4, "control_block_steps": 10},
            "poor": {"temperature": 4.0},
            "uniform": {"score": "uniform", "selector": "uniform"},
        }
        flops = image_flops(model_config(8, RECIPE.learner_width))
        for name, chosen in settings.items():
            spec = {"model_config": online, "learner_flops": flops, "ledger": True, "seed": 1, **chosen}
            run = client.create_run(RunSpec(name, model=ARCHITECTURE, **spec))
            if name != "uniform":
                seen = parts.clean if name == "good" else parts.pool
                run.push_reference(train_reference(seen, online, RECIPE, 2).state_dict())

            def watch(update: int, accuracy: float | None, run: Any = run) -> None:
                if accuracy is not None:
                    run.report_metrics(update, {"test_accuracy": accuracy})

            train_learner(run, parts, RECIPE, 0, watch)
    torch.set_num_threads(threads)
    assert served.end(signal.SIGTERM) == 0
    return Trained(f"127.0.0.1:{serve(folder / 'store').port()}", folder / "data.parquet")


@pytest.fixture
def report(trained: Trained, tmp_path: Path) -> Callable[..., Page]:
    """Writes a report of runs, and returns the page."""

    def made(*arguments: str) -> Page:
        out = tmp_path / "report.html"
        ran = CliRunner().invoke(app, ["report", *arguments, "--out", str(out), "--target", trained.target])
        assert (ran.exit_code, ran.output) == (0, f"{out} tells of run {arguments[0]}\n")
        return Page(out.read_text())

    return made


def test_a_report_shows_curves_examples_classes_and_finds_what_is_noise(
    report: Callable[..., Page], trained: Trained
) -> None:
    columns = ("--image-column", "image", "--class-column", "label", "--class-column", "given")
    page = report("good", "--twin", "uniform", "--data", str(trained.data), *columns)
    assert page.mismatched == []
    assert len(page.attributes("svg")) == 4
    images = page.attributes("img")
    assert len(images) == 24
    assert {(one["src"] or "")[:22] for one in images} == {"data:image/png;base64,"}
    assert all(one["alt"] for one in images)
    assert page.loaded() == [one["src"] for one in images]
    rows = dict(re.findall(r"(wrong|right) \d+ [\d.]+ % [\d.]+ % ([\d.]+)", page.text))
    assert float(rows["wrong"]) < 0.6 < 1.4 < float(rows["right"])
    most, least = page.text.split("Most, beyond chance")[1].split(" By label ")[0].split(" Least ")
    assert most.count("given: right") >= 10
    assert least.count("given: wrong") >= 10
    assert "1,157 of 1,157 examples offered are in the data that was given." in page.text
    assert "answers of steps 0 to 79." in page.text
    held = re.search(r"held back as control arm (\d+)", page.text)
    assert held is not None
    assert 0 < int(held[1]) < 80
    assert re.search(
        r"gained per step over \d selected blocks of 10 steps, minus the same over \d that were", page.text
    )
    assert "Selection hardly differs" not in page.text


def test_a_reference_no_better_than_the_pool_at_a_high_temperature_is_told(report: Callable[..., Page]) -> None:
    page = report("poor", "--twin", "uniform")
    assert "Selection hardly differs from uniform draws." in page.text
    assert re.search(r"that of all offered from \d", page.text)
    assert "--data FILES.parquet" in page.text


def test_the_report_of_a_uniform_run_warns_of_nothing_that_it_cannot_know(report: Callable[..., Page]) -> None:
    text = report("uniform").text
    assert "Nothing to draw: no answer had any." in text
    assert "hardly differs" not in text
    assert "No twin was named." in text


def test_the_command_writes_the_page_that_it_names(
    preceptor: Callable[..., Ran], trained: Trained, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    ran = preceptor("report", "good", "--out", str(out), "--target", trained.target)
    assert (ran.code, ran.out, ran.err) == (0, f"{out} tells of run good\n", "")
    assert Page(out.read_text()).mismatched == []


def test_it_says_what_is_wrong_and_writes_nothing(trained: Trained, tmp_path: Path) -> None:
    def failed(*arguments: str, target: str = trained.target) -> str:
        out = tmp_path / "none.html"
        ran = CliRunner().invoke(app, ["report", *arguments, "--out", str(out), "--target", target])
        assert (ran.exit_code, ran.stdout, out.exists()) == (1, "", False)
        assert ran.stderr.startswith("preceptor: ")
        return ran.stderr

    assert "there is no run 'nobody'" in failed("nobody")
    assert "run 'poor' has score 'learnability' and is no twin" in failed("good", "--twin", "poor")
    assert "2 runs and 1 twins were named" in failed("good", "poor", "--twin", "uniform")
    assert "metric 'luck' was not reported" in failed("good", "--metric", "luck")
    assert "there is no data at nowhere" in failed("good", "--data", "nowhere")
    data = ("good", "--data", str(trained.data))
    assert "no column 'picture'" in failed(*data, "--image-column", "picture")
    assert "--image-shape is '8x8'; give" in failed(*data, "--image-column", "image", "--image-shape", "8x8")
    assert "no service answers at 127.0.0.1:9" in failed("good", target="127.0.0.1:9")
