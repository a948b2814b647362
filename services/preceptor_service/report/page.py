"""The page: material to what is said and drawn, and that to HTML. The same material gives the same bytes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from preceptor import RunSpec
from preceptor_service.report import signs
from preceptor_service.report.charts import Band, Chart, Line, number
from preceptor_service.report.example_data import Shown
from preceptor_service.report.gather import Material, Reported
from preceptor_service.report.selections import QUANTILES, Period, Selections
from preceptor_service.report.signs import Sign
from preceptor_service.schedule import is_held_back
from preceptor_service.uplift import ControlUplift, Interval, TwinUplift, control_uplift, is_less_better, twin_uplift

_MAX_SHADED = 200
_MAX_POINTS = 400
_UNEQUAL_BUDGET = 0.02


@dataclass(frozen=True)
class MetricComparison:
    """One metric: its curve and what it says of selection."""

    name: str
    less_is_better: bool
    chart: Chart
    last_value: float
    twin: TwinUplift | None
    control: ControlUplift | None


@dataclass(frozen=True)
class ShownExample:
    """One example on the page."""

    example_id: str
    selected: int
    offered: int
    expected: float
    mean_score: str
    seen: Shown


def render(material: Material, metric: str | None = None) -> str:
    """Returns the page as one HTML document that loads nothing.

    Args:
        material: what it shows.
        metric: the one that heads the page; None: the first with accuracy in its name, else the first.

    Raises:
        ValueError: no such metric was reported.
    """
    environment = Environment(
        loader=PackageLoader("preceptor_service.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": number,
        "percent": _percent,
        "interval": _interval,
        "ends": _ends,
        "signed": _signed,
    }
    run, selections = material.runs[0], material.selections
    comparisons = _comparisons(material)
    main = _main(comparisons, metric)
    return environment.get_template("page.html").render(
        run=run,
        spec=run.status.spec,
        created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(run.status.create_time_s)),
        material=material,
        selections=selections,
        comparisons=comparisons,
        main=main,
        budgets=_budgets(material),
        signs=list(_signs(material, comparisons)),
        scores=None if selections is None else _scores_chart(selections),
        sources=None if selections is None else _sources_chart(selections),
        staleness=None if selections is None else _staleness_chart(selections),
        most=_shown(material, 0),
        least=_shown(material, 1),
        settings=_settings(run.status.spec),
    )


def _main(comparisons: Sequence[MetricComparison], metric: str | None) -> MetricComparison | None:
    by_name = {found.name: found for found in comparisons}
    if metric is not None:
        if metric not in by_name:
            raise ValueError(f"metric {metric!r} was not reported; choose one of {sorted(by_name)}")
        return by_name[metric]
    return next((found for found in comparisons if "accuracy" in found.name.lower()), next(iter(comparisons), None))


def _comparisons(material: Material) -> list[MetricComparison]:
    run = material.runs[0]
    spec = run.status.spec
    found = []
    for place, (name, series) in enumerate(run.metrics.items()):
        less_is_better = is_less_better(name)
        pairs = [
            (one.metrics[name], twin.metrics[name])
            for one, twin in zip(material.runs, material.twins, strict=False)
            if name in one.metrics and name in twin.metrics
        ]
        is_whole = bool(pairs) and len(pairs) == len(material.runs)
        found.append(
            MetricComparison(
                name=name,
                less_is_better=less_is_better,
                chart=_curve(material, name, place),
                last_value=float(series.values[-1]),
                twin=twin_uplift(pairs, less_is_better) if is_whole else None,
                control=_control(spec, series, less_is_better),
            )
        )
    return found


def _control(spec: RunSpec, series: Any, less_is_better: bool) -> ControlUplift | None:
    if spec.control_fraction == 0:
        return None
    return control_uplift(series, spec.control_block_steps, lambda step: is_held_back(spec, step), less_is_better)


def _curve(material: Material, name: str, place: int) -> Chart:
    lines, ends = [], []
    for style, reports in (("twin", material.twins), ("run", material.runs)):
        for one in reports:
            if name in one.metrics:
                series = one.metrics[name]
                points = _thinned(list(zip(series.steps.tolist(), series.values.tolist(), strict=True)))
                lines.append(Line(one.run_id + (" (uniform)" if style == "twin" else ""), points, style))
                ends.append(f"{lines[-1].name} ends at {number(points[-1][1])} at step {number(points[-1][0])}")
    spec = material.runs[0].status.spec
    last = max(int(line.points[-1][0]) for line in lines)
    return Chart(
        key=f"metric-{place}",
        title=name,
        summary=f"{name} over steps: {'; '.join(ends)}.",
        x_label="step",
        y_label=name,
        lines=lines,
        shaded=_held_back(spec, last),
        shaded_name="held back: uniform",
    )


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Returns at most `_MAX_POINTS` of them, evenly, the last among them: a chart is not wider, nor a table longer."""
    every = -(-len(points) // _MAX_POINTS)
    return points[len(points) - 1 :: -every][::-1] if points else points


def _held_back(spec: RunSpec, last_step: int) -> list[tuple[float, float]]:
    """Returns the ranges of steps that were held back, neighbours joined; none where they would be too many to see."""
    size = spec.control_block_steps
    if spec.control_fraction == 0 or last_step // size > 50 * _MAX_SHADED:
        return []
    found: list[tuple[float, float]] = []
    for block in range(last_step // size + 1):
        if any(is_held_back(spec, step) for step in (block * size, block * size + size - 1)):
            start, end = block * size, min(last_step, (block + 1) * size)
            found = [*found[:-1], (found[-1][0], end)] if found and found[-1][1] == start else [*found, (start, end)]
    return found if len(found) <= _MAX_SHADED else []


def _budgets(material: Material) -> list[str]:
    """Returns a sentence for each pair whose runs did not train equally long, as far as they reported."""
    found = []
    for run, twin in zip(material.runs, material.twins, strict=False):
        ends = [max((int(series.steps[-1]) for series in one.metrics.values()), default=0) for one in (run, twin)]
        if abs(ends[0] - ends[1]) > _UNEQUAL_BUDGET * max(ends):
            found.append(f"{run.run_id} reported until step {ends[0]:,}, its twin {twin.run_id} until {ends[1]:,}.")
    return found


def _signs(material: Material, comparisons: Sequence[MetricComparison]) -> Iterator[Sign]:
    run, selections = material.runs[0].status, material.selections
    found: list[Sign | None] = []
    for one in comparisons:
        if one.twin is not None:
            found.append(signs.measured_harm(one.name, "uniform twins", one.twin.gain))
        if one.control is not None:
            found.append(signs.measured_harm(f"{one.name} per step", "the steps held back", one.control.gain))
    if selections is not None:
        found.append(signs.exhausted_reference(run.spec, selections.periods))
        found.append(signs.indifferent_scores(run.spec, selections.periods))
        if selections.examples is not None:
            found.append(signs.many_offers(selections.candidates, len(selections.examples)))
    if material.data is not None:
        found += [signs.starved_groups(column, groups) for column, groups in material.data.groups.items()]
    fallbacks, answers = _fallbacks(material.runs[0], selections)
    found += [signs.many_fallbacks(fallbacks, answers), signs.compute_negative(run.cost)]
    return (sign for sign in found if sign is not None)


def _fallbacks(run: Reported, selections: Selections | None) -> tuple[int, int]:
    if selections is not None:
        return sum(selections.fallbacks.values()), selections.answers
    return run.status.fallbacks, run.status.super_batches


def _scores_chart(selections: Selections) -> Chart:
    periods = selections.periods
    quantiles = [
        [(_middle(period), None if period.quantiles is None else period.quantiles[place]) for period in periods]
        for place in range(len(QUANTILES))
    ]
    scored = [period for period in periods if period.mean_selected is not None]
    means = "nothing was scored"
    if scored:
        first, last = scored[0], scored[-1]
        means = (
            f"the mean of the selected goes from {number(first.mean_selected or 0)} to "
            f"{number(last.mean_selected or 0)}, that of all offered from {number(first.mean_offered or 0)} to "
            f"{number(last.mean_offered or 0)}"
        )
    return Chart(
        key="scores",
        title="Scores of candidates",
        summary=f"Scores over steps: {means}.",
        x_label="step",
        y_label="score",
        lines=[
            Line("median of offered", quantiles[2], "second"),
            Line("mean of selected", [(_middle(period), period.mean_selected) for period in periods], "run"),
        ],
        bands=[
            Band("9 of 10 offered", quantiles[0], quantiles[4], "wide"),
            Band("half of offered", quantiles[1], quantiles[3], "narrow"),
        ],
    )


def _sources_chart(selections: Selections) -> Chart | None:
    """How answers came about; None where all by the run's settings."""
    periods = selections.periods
    if not selections.fallbacks and not selections.held_back:
        return None

    def share(count: str) -> list[tuple[float, float | None]]:
        return [(_middle(period), _percent_of(getattr(period, count), period.answers)) for period in periods]

    fallbacks = sum(selections.fallbacks.values())
    return Chart(
        key="sources",
        title="Answers drawn uniformly",
        summary=f"{fallbacks:,} of {selections.answers:,} answers were fallbacks, {selections.held_back:,} held back.",
        x_label="step",
        y_label="% of answers",
        lines=[Line("held back", share("held_back"), "twin"), Line("fallbacks", share("fallbacks"), "run")],
        from_zero=True,
    )


def _staleness_chart(selections: Selections) -> Chart:
    points = [(_middle(period), period.mean_staleness_steps) for period in selections.periods]
    known = [value for _, value in points if value is not None]
    about = f"between {number(min(known))} and {number(max(known))} steps" if known else "not known"
    return Chart(
        key="staleness",
        title="Age of the learner copy",
        summary=f"Mean age of the learner copy behind the scores over steps: {about}.",
        x_label="step",
        y_label="steps",
        lines=[Line("mean staleness", points, "run")],
        from_zero=True,
    )


def _middle(period: Period) -> float:
    return (period.first_step + period.last_step) / 2


def _shown(material: Material, end: int) -> list[ShownExample]:
    examples = None if material.selections is None else material.selections.examples
    if examples is None:
        return []
    found = []
    for place in material.shown[end]:
        name = examples.ids[place].as_py()
        score = float(examples.mean_score[place])
        found.append(
            ShownExample(
                example_id=name,
                selected=int(examples.selected[place]),
                offered=int(examples.offered[place]),
                expected=float(examples.expected[place]),
                mean_score=number(score) if np.isfinite(score) else "–",
                seen=Shown() if material.data is None else material.data.shown.get(name, Shown()),
            )
        )
    return found


def _settings(spec: RunSpec) -> list[tuple[str, str]]:
    """Returns the settings that are not the default, and those that say what the run is."""
    named = ("run_id", "task", "model", "score", "selector", "temperature", "seed")
    found = []
    for one in dataclasses.fields(spec):
        value = getattr(spec, one.name)
        default = one.default if one.default is not dataclasses.MISSING else {}
        if one.name in named or value != default:
            text = (
                ", ".join(f"{name}={item}" for name, item in value.items()) if isinstance(value, dict) else str(value)
            )
            found.append((one.name, text))
    return found


def _percent_of(count: int, answers: int) -> float | None:
    return 100 * count / answers if answers else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %".replace("-", "−")


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value, digits=3)


def _interval(interval: Interval, per: float = 1.0) -> str:
    return f"{_signed(per * interval.estimate)} ({_ends(interval, per)})"


def _ends(interval: Interval, per: float = 1.0) -> str:
    if interval.low is None or interval.high is None:
        return "too few reports for an interval"
    return f"{_signed(per * interval.low)} to {_signed(per * interval.high)}"
