"""The demo runs, through a real service in this process, and says what happened."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from examples.demo import __main__ as command
from examples.demo import comparison, picture, table
from examples.demo.training import RECIPES, History
from preceptor_service.reference import demo_data
from tests.report.pages import Page

UPDATES = 24


def history(evaluated_at: list[int], accuracy: list[float], fallbacks: int = 0) -> History:
    return History(
        evaluated_at,
        accuracy,
        corrupt_share=[0.25] * evaluated_at[-1],
        training_s=2.0,
        candidates=3200,
        fallbacks=fallbacks,
    )


def comparing(uniform: History, selected: History) -> comparison.Comparison:
    recipe = replace(RECIPES["digits"], updates=40, reference_updates=10, super_batch_size=320, sub_batch_size=64)
    return comparison.Comparison("digits", 7, recipe, 0.9, 0.06, {"uniform": uniform, "learnability": selected})


@pytest.fixture(scope="module", params=[False, True], ids=["co-trained", "pushed"])
def output(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("demo")
    console = Console(file=io.StringIO(), width=120)
    comparison.run("digits", 0, UPDATES, "in-process", request.param, out, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue(), out


def test_a_short_run_gives_every_value_of_the_table(output: tuple[str, Path]) -> None:
    printed, _ = output
    rows = re.findall(r"^  (\S.*?\S) {2,}(\S.*?\S) {2,}(\S.*?\S)\s*$", printed, re.MULTILINE)

    assert [re.sub(r"[\d.]+%", "N%", quantity) for quantity, *_ in rows] == [
        "updates to N% (uniform's best)", "best test accuracy", f"final test accuracy, {UPDATES} updates",
        "wrong labels among those trained on", "compute to get there, all charged¹",
        "… without the reference's training", "exposed wait per update²", "wait for pushes, per update",
        "candidates per second³",
    ]  # fmt: skip
    assert all(re.search(r"\d", value) for _, *values in rows for value in values[:1])


def test_learnability_leaves_wrong_labels_alone(output: tuple[str, Path]) -> None:
    printed, _ = output
    (shares,) = re.findall(r"wrong labels among those trained on +(\d+)% +(\d+)%", printed)

    assert 40 <= int(shares[0]) <= 60
    assert int(shares[1]) <= 10


def test_a_short_run_draws_a_picture(output: tuple[str, Path]) -> None:
    printed, out = output
    content = (out / "digits.png").read_bytes()
    width, height = struct.unpack(">II", content[16:24])

    assert content.startswith(b"\x89PNG\r\n")
    assert (width, height) == (1600, 672)
    assert f"picture: {out / 'digits.png'}" in printed


def test_a_short_run_writes_a_report_of_what_was_selected(output: tuple[str, Path]) -> None:
    printed, out = output
    page = Page((out / "digits.html").read_text())

    assert f"report: {out / 'digits.html'}" in printed
    assert page.mismatched == []
    assert "test_accuracy, gain over uniform twins" in page.text
    assert len(page.attributes("img")) == 24


def test_a_selected_run_is_compared_at_uniforms_best_accuracy() -> None:
    found = comparing(history([10, 20, 30, 40], [0.5, 0.8, 0.9, 0.9]), history([10, 20, 30, 40], [0.7, 0.9, 0.8, 0.95]))
    values = {quantity: rest for quantity, *rest in table.rows(found)}

    assert values["updates to 90.0% (uniform's best)"] == ["30", "20 (33% fewer)"]
    # 20/30 · (1 + 0.06 + 5/3 · 0.12) + 0.06 · 10/30
    assert values["compute to get there, all charged¹"] == ["100%", "86%"]
    assert values["… without the reference's training"] == ["100%", "84%"]
    assert values["candidates per second³"] == ["1,600", "1,600"]


def test_more_updates_are_not_called_fewer() -> None:
    found = comparing(history([10, 20], [0.9, 0.9]), history([10, 20], [0.8, 0.9]))

    assert table.rows(found)[0][2] == "20 (100% more)"


def test_a_target_that_was_never_reached_is_told() -> None:
    found = comparing(history([10, 20, 30, 40], [0.5, 0.8, 0.9, 0.9]), history([10, 20, 30, 40], [0.7] * 4))
    values = {quantity: rest for quantity, *rest in table.rows(found)}

    assert values["updates to 90.0% (uniform's best)"][1] == "never in 40"
    assert values["… without the reference's training"][1] == "never; spent 168%"


def test_a_picture_without_arrival_is_drawn(tmp_path: Path) -> None:
    found = comparing(history([10, 20], [0.5, 0.9]), history([10, 20], [0.5, 0.6]))

    assert picture.save(found, tmp_path / "new" / "folder.png").stat().st_size > 10_000


def test_fallbacks_are_told() -> None:
    silent = comparing(history([10], [0.5]), history([10], [0.6]))
    loud = comparing(history([10], [0.5]), history([10], [0.6], fallbacks=3))

    assert "fell back" not in table.footnotes(silent)
    assert "3 selections fell back to uniform" in table.footnotes(loud)


def test_a_share_is_averaged_over_the_last_updates() -> None:
    values = [0.5, 0.25, 1.0, 0.0, 0.125]
    expected = [sum(values[max(0, i - 2) : i + 1]) / len(values[max(0, i - 2) : i + 1]) for i in range(5)]

    assert picture.smoothed(values, 3).tolist() == pytest.approx(expected)


def test_missing_data_ends_the_command_with_a_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_data, "FASHION_MNIST", tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)

    assert command.main(["--data", "fashion-mnist", "--pool", "in-process"]) == 1
    assert "dataset-fashion-mnist" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--updates", "0"], ["--seed", "-1"], ["--data", "cats"], ["--seed", "one"]])
def test_a_wrong_option_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)

    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize("name", demo_data.DATA_SETS)
def test_every_data_set_has_a_recipe(name: str) -> None:
    recipe = RECIPES[name]

    assert recipe.ratio == recipe.super_batch_size / recipe.sub_batch_size > 1
