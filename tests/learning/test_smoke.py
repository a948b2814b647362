"""Every experiment runs, in its short form, by the command, through a real service in this process."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.learning import __main__ as command
from benchmarks.learning import report
from benchmarks.learning.experiments import EXPERIMENTS
from benchmarks.learning.settings import digest

SMOKED = [name for name, each in EXPERIMENTS.items() if each.package is None and not name.startswith("trial-")]

pytestmark = pytest.mark.usefixtures("fashion_mnist")


@pytest.mark.parametrize("name", SMOKED)
def test_the_short_form_of_an_experiment_gives_its_tables(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    before = report.PAGE.read_text()

    assert command.main([name, "--smoke", "--work", str(tmp_path)]) == 0

    printed = capsys.readouterr().out
    runs = [json.loads(line) for line in (tmp_path / "smoke.jsonl").read_text().splitlines()]
    experiment = EXPERIMENTS[name].smoke()
    assert {run["digest"] for run in runs} == {digest(run) for run in experiment.runs()}
    for arm in experiment.arms:
        assert re.search(rf"^\| {re.escape(arm)} \| -?\d+\.\d+ ", printed, re.MULTILINE)
    assert {run["settings"]["measured_on"] for run in runs} == {"validation"}
    assert report.PAGE.read_text() == before
