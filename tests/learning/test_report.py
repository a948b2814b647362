"""The page says what the committed runs say, and nothing that they do not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.learning import prediction, report
from benchmarks.learning.experiments import EXPERIMENTS, UNIFORM
from benchmarks.learning.ladder import Results
from benchmarks.learning.settings import plain

PAGE = report.PAGE.read_text()
ON_PAGE = report.on_page(PAGE)


@pytest.fixture(scope="module")
def results() -> Results:
    return Results(report.RUNS)


@pytest.mark.parametrize("experiment", ON_PAGE, ids=lambda experiment: experiment.name)
def test_the_tables_of_the_page_are_those_that_the_runs_give(experiment, results) -> None:  # type: ignore[no-untyped-def]
    begin, end = report.marked(PAGE, experiment.name)

    assert report.is_whole(experiment, results)
    assert PAGE[begin:end].strip() == report.table(experiment, results)


@pytest.mark.parametrize("experiment", ON_PAGE, ids=lambda experiment: experiment.name)
def test_what_is_reported_was_measured_on_the_test_part_of_three_seeds(experiment) -> None:  # type: ignore[no-untyped-def]
    if not experiment.name.startswith("trial-"):
        assert experiment.base.measured_on == "test"
        assert len(experiment.seeds) >= 3
        is_side_question = experiment.name.startswith(("ablation-", "scaling", "composer-"))
        assert is_side_question or experiment.budgets == (1.0, 0.75, 0.5, 0.35, 0.25)
        assert {1.0, 0.5} <= set(experiment.budgets)
        assert next(iter(experiment.arms)) == UNIFORM


def test_trials_read_no_test_part_and_use_no_reported_seed() -> None:
    trials = [experiment for name, experiment in EXPERIMENTS.items() if name.startswith("trial-")]
    reported = {seed for name, each in EXPERIMENTS.items() if not name.startswith("trial-") for seed in each.seeds}

    assert trials
    for trial in trials:
        assert trial.base.measured_on == "validation"
        assert not reported & set(trial.seeds)


@pytest.mark.parametrize("experiment", ON_PAGE, ids=lambda experiment: experiment.name)
def test_the_cost_model_predicts_what_was_counted_to_a_tenth(experiment, results) -> None:  # type: ignore[no-untyped-def]
    """All but the one pass of the reference over the pool, which the model does not know."""
    for arm in set(experiment.arms) - {UNIFORM}:
        for seed, found in zip(experiment.seeds, report.verdicts(experiment, arm, results), strict=True):
            if found.reached_at is not None:
                run = results.find(experiment.training(arm, found.reached_at, seed))
                assert run is not None
                table_flops = run["costs"].get("reference_table", {"flops": 0.0})["flops"]
                uniform_flops = report.rungs(experiment, UNIFORM, seed, results)[1.0].flops
                counted = found.flops_ratio - table_flops / uniform_flops
                settings = experiment.training(arm, 1.0, seed)
                assert prediction.compute_ratio(settings, found.fewer_updates) == pytest.approx(counted, rel=0.1)


def test_every_committed_run_names_commit_and_hardware_and_no_host_or_path(results: Results) -> None:
    assert list(results)
    for run in results:
        assert len(run["made_on"]["commit"].removesuffix("+changes")) == 40
        assert {"cpu", "cores", "memory_gib"} <= set(run["made_on"]["hardware"])
    assert not re.search(r"/home|localhost|127\.0", report.RUNS.read_text())


def test_every_committed_run_is_one_of_an_experiment(results: Results) -> None:
    known = [json.dumps(plain(run)) for experiment in EXPERIMENTS.values() for run in experiment.runs()]

    assert [run["digest"] for run in results if json.dumps(run["settings"]) not in known] == []


def test_every_picture_of_an_experiment_is_of_one_on_the_page() -> None:
    drawn = {path.stem.removeprefix("learning-") for path in report.PICTURES.glob("learning-*.png")}

    assert drawn == {experiment.name for experiment in ON_PAGE if len(experiment.arms) > 1}


@pytest.mark.parametrize("has_axis", [False, True])
def test_a_picture_is_drawn(results: Results, has_axis: bool, tmp_path: Path) -> None:
    experiment = next(each for each in ON_PAGE if len(each.arms) > 1 and (each.axis is not None) == has_axis)

    report.draw(experiment, results, tmp_path / "new" / "picture.png")

    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG\r\n")
