"""The committed runs as tables, written into docs/results.md between markers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning import identity, pictures
from benchmarks.learning.experiments import EXPERIMENTS, UNIFORM, Experiment
from benchmarks.learning.ladder import Results
from benchmarks.learning.verdict import Rung, Rungs, Verdict, interval, verdict
from benchmarks.machine import ROOT

RUNS = Path(__file__).resolve().parent / "results" / "runs.jsonl"
PAGE = ROOT / "docs" / "results.md"
PICTURES = ROOT / "docs" / "images"


def is_whole(experiment: Experiment, results: Results) -> bool:
    """Whether every run of an experiment is done."""
    return all(results.find(run) is not None for run in experiment.runs())


def rungs(
    experiment: Experiment, arm: str, seed: int, results: Results, quality: str | None = None
) -> dict[float, Rung]:
    """Returns the finished runs of an arm by budget; `quality` is the one that decides unless another is named."""
    found = {budget: results.find(experiment.training(arm, budget, seed)) for budget in experiment.budgets}
    return {budget: rung_of(run, quality or experiment.quality) for budget, run in found.items() if run is not None}


def rung_of(run: dict[str, Any], quality: str) -> Rung:
    """Returns a finished run as verdicts read it, everything charged."""
    costs = run["costs"].values()
    return Rung(run["quality"][quality], sum(cost["flops"] for cost in costs), sum(cost["cpu_s"] for cost in costs))


def verdicts(experiment: Experiment, arm: str, results: Results) -> list[Verdict]:
    """Returns what is to be said of an arm, by seed; needs the whole experiment."""
    return [
        verdict(rungs(experiment, arm, seed, results), rungs(experiment, UNIFORM, seed, results))
        for seed in experiment.seeds
    ]


def table(experiment: Experiment, results: Results) -> str:
    """Returns the tables of an experiment, in Markdown: the ladder, and what it says of arms beside the control."""
    if not is_whole(experiment, results):
        return "Not all of its runs are done."
    lines = list(_ladder(experiment, experiment.quality, results))
    if len(experiment.arms) > 1:
        lines += ["", *_verdict(experiment, results)]
    for quality in experiment.also:
        lines += ["", *_ladder(experiment, quality, results)]
    return "\n".join(lines)


def _ladder(experiment: Experiment, quality: str, results: Results) -> Iterator[str]:
    budgets = experiment.budgets
    title = f"{quality.replace('_', ' ')}, by budget"
    yield f"| {title} | {' | '.join(_updates(experiment, budget) for budget in budgets)} |"
    yield f"|---|{'---|' * len(budgets)}"
    for arm in experiment.arms:
        by_seed = [rungs(experiment, arm, seed, results, quality) for seed in experiment.seeds]
        yield f"| {arm} | {' | '.join(_qualities(by_seed, budget) for budget in budgets)} |"


def _updates(experiment: Experiment, budget: float) -> str:
    return f"{budget:.0%}: {round(experiment.base.updates * budget):,}"


def _qualities(by_seed: Sequence[Rungs], budget: float) -> str:
    values = [rung[budget].quality for rung in by_seed]
    return f"{statistics.fmean(values):.2%} ({', '.join(f'{value * 100:.2f}' for value in values)})"


def _verdict(experiment: Experiment, results: Results) -> Iterator[str]:
    yield "| arm, by seed | fewer updates | operations, of uniform's | processor seconds | at the full budget |"
    yield "|---|---|---|---|---|"
    for arm in experiment.arms:
        if arm != UNIFORM:
            found = verdicts(experiment, arm, results)
            mean, half_width = interval([each.gain for each in found])
            cells = (
                ", ".join("not reached" if each.reached_at is None else f"{each.fewer_updates:.0%}" for each in found),
                _ratios([each.flops_ratio for each in found]),
                _ratios([each.cpu_ratio for each in found]),
                f"{mean * 100:+.2f} ± {half_width * 100:.2f} points",
            )
            yield f"| {arm} | {' | '.join(cells)} |"


def _ratios(values: Sequence[float | None]) -> str:
    return ", ".join("–" if value is None else f"{value:.0%}" for value in values)


def marked(text: str, name: str) -> tuple[int, int]:
    """Returns where the generated part of that name begins and ends.

    Raises:
        ValueError: the text has none.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    return text.index(begin) + len(begin), text.index(end)


def on_page(text: str) -> list[Experiment]:
    """Returns the experiments that the page has places for, in the order of the table of experiments."""
    return [experiment for name, experiment in EXPERIMENTS.items() if f"<!-- {name}: begin -->" in text]


def write(results: Results) -> None:
    """Writes the page's tables, and draws the pictures of the experiments that are whole."""
    text = PAGE.read_text()
    for experiment in on_page(text):
        begin, end = marked(text, experiment.name)
        text = f"{text[:begin]}{table(experiment, results)}\n{text[end:]}"
        if len(experiment.arms) > 1 and is_whole(experiment, results):
            draw(experiment, results, PICTURES / f"learning-{experiment.name}.png")
    begin, end = marked(text, "identity")
    PAGE.write_text(f"{text[:begin]}{identity.table(json.loads(identity.FOUND.read_text()))}\n{text[end:]}")


def draw(experiment: Experiment, results: Results, path: Path) -> None:
    """Draws an experiment; needs all of it."""
    arms = {arm: [rungs(experiment, arm, seed, results) for seed in experiment.seeds] for arm in experiment.arms}
    pictures.save(experiment.question, experiment.base.updates, arms, path)
