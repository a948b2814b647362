"""The committed runs as tables, written into docs/results.md between markers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning import identity, measures, pictures, prediction
from benchmarks.learning.experiments import EXPERIMENTS, UNIFORM, Experiment
from benchmarks.learning.ladder import Results
from benchmarks.learning.settings import Training
from benchmarks.learning.verdict import Rung, Rungs, Verdict, verdict
from benchmarks.machine import ROOT
from preceptor_service.uplift import t_interval

RUNS = Path(__file__).resolve().parent / "results" / "runs.jsonl"
PAGE = ROOT / "docs" / "results.md"
_VERDICT = (
    "fewer updates", "operations, of uniform's", "the same by the cost model", "processor seconds, of uniform's",
    "better at the full budget",
)  # fmt: skip
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
        lines += ["", *_verdict(experiment, results), "", *_notes(experiment, results)]
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
        yield f"| {arm} | {' | '.join(_qualities(quality, by_seed, budget) for budget in budgets)} |"


def _updates(experiment: Experiment, budget: float) -> str:
    return f"{budget:.0%}: {round(experiment.base.updates * budget):,}"


def _qualities(quality: str, by_seed: Sequence[Rungs], budget: float) -> str:
    values = [rung[budget].quality for rung in by_seed]
    each = ", ".join(shown(quality, value).removesuffix(" %") for value in values)
    return shown(quality, statistics.fmean(values)) + (f" ({each})" if len(values) > 1 else "")


def shown(quality: str, value: float, sign: str = "") -> str:
    """Returns a number as its quality is read: shares in per cent, others as they are."""
    return f"{value * 100:{sign}.2f} %" if quality in measures.SHARES else f"{value:{sign}.3f}"


def _verdict(experiment: Experiment, results: Results) -> Iterator[str]:
    yield f"| arm, {'by seed' if len(experiment.seeds) > 1 else 'one seed'} | {' | '.join(_VERDICT)} |"
    yield f"|---|{'---|' * len(_VERDICT)}"
    for arm in experiment.arms:
        if arm != UNIFORM:
            found = verdicts(experiment, arm, results)
            settings = experiment.training(arm, 1.0, experiment.seeds[0])
            cells = (
                ", ".join("not reached" if each.reached_at is None else f"{each.fewer_updates:.0%}" for each in found),
                _ratios([each.flops_ratio for each in found]),
                _ratios([_predicted(settings, each) for each in found]),
                _ratios([each.cpu_ratio for each in found]),
                _gain(experiment.quality, [each.gain for each in found]),
            )
            yield f"| {arm} | {' | '.join(cells)} |"


def _notes(experiment: Experiment, results: Results) -> Iterator[str]:
    """Says of each arm, at the full budget, what noise it trained on and how good its reference is."""
    for arm in experiment.arms:
        runs = [results.find(experiment.training(arm, 1.0, seed)) for seed in experiment.seeds]
        found = [run for run in runs if run is not None]
        noise = statistics.fmean(run["noise_share"] for run in found)
        text = f"* {arm}: {noise:.0%} of what it trained on at the full budget was noise"
        references = [run["reference_quality"] for run in found if run["reference_quality"] is not None]
        if references:
            own = statistics.fmean(quality[experiment.quality] for quality in references)
            saving = prediction.break_even(experiment.training(arm, 1.0, experiment.seeds[0]))
            text += (
                f"; its reference by itself has {shown(experiment.quality, own)} on the validation part; the cost model"
                f" asks for {saving:.0%} fewer updates to break even"
            )
        yield f"{text}."


def _predicted(settings: Training, found: Verdict) -> float | None:
    return None if found.reached_at is None else prediction.compute_ratio(settings, found.fewer_updates)


def _gain(quality: str, gains: Sequence[float]) -> str:
    found = t_interval(np.array(gains))
    spread = "" if found.high is None else f" ± {shown(quality, found.high - found.estimate)}"
    return shown(quality, found.estimate, "+") + spread


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
    axis = experiment.axis
    if axis is None:
        pictures.save(experiment.question, experiment.quality, experiment.base.updates, arms, path)
    else:
        control = arms.pop(UNIFORM)
        values = [axis.value(experiment.training(arm, 1.0, experiment.seeds[0])) for arm in arms]
        by_value = dict(zip(values, arms.values(), strict=True))
        pictures.save_sweep(experiment.question, experiment.quality, axis, control, by_value, path)
