"""Building blocks of the dashboards: one look for every panel, so that the dashboards say only what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)

PROMETHEUS = DataSourceRef(type_val="prometheus", uid="${datasource}")

RUNBOOKS = "${runbooks}"
"""The page of runbooks, as the variable of that name says."""

JOB = 'namespace=~"$namespace", job=~"$job"'
"""What recorded series and Ray's metrics are chosen by."""
GATEWAY = f'{JOB}, instance=~"$instance"'
"""What a gateway's metrics are chosen by."""
RUN = f'{GATEWAY}, run=~"$run"'
"""What metrics with a run are chosen by."""
FIRING = 'ALERTS{alertname=~"Preceptor.+", alertstate="firing", namespace=~"$namespace|", job=~"$job|"}'
"""The alerts that fire, also those that name no installation, as when there never was one."""
RATE = "[$__rate_interval]"
"""The window of a rate: Grafana's choice, never below four scrapes."""

_LETTERS = "ABCDEFGH"
_DASHED = {"fill": "dash", "dash": [6, 4]}

Panel = timeseries.Panel | stat.Panel
AnyPanel = TypeVar("AnyPanel", timeseries.Panel, stat.Panel)


@dataclass(frozen=True)
class Query:
    """A query, and the legend of its series; `{{label}}` stands for a label of theirs.

    `is_bound`: what the other queries of its panel are held against, drawn as a dashed line.
    """

    expr: str
    legend: str
    is_bound: bool = False


def or_none(expr: str, label: str) -> str:
    """Returns a query that answers 0 for `none` while nothing has happened yet, and no series exists."""
    return f'{expr} or on () label_replace(vector(0), "{label}", "none", "", "")'


@dataclass(frozen=True)
class Limits:
    """From where a value is yellow and from where red; with `low_is_bad`, below where."""

    yellow: float
    red: float
    low_is_bad: bool = False


@dataclass(frozen=True)
class Row:
    """Panels beside each other, below a title that asks a question."""

    title: str
    panels: Sequence[Panel]


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    limits: Limits | None = None,
    stacked: bool = False,
    runbooks: Sequence[str] = (),
    maximum: float | None = None,
    signed: bool = False,
) -> timeseries.Panel:
    """Returns a panel of values over time, `width` of 24 wide. `runbooks` are alerts that watch the same."""
    panel = (
        timeseries.Panel()
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        .line_width(1.5)
        .fill_opacity(40 if stacked else 8)
        .height(8)
    )
    if not signed:
        panel = panel.min(0)
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if maximum is not None:
        panel = panel.max(maximum)
    for letter, query in zip(_LETTERS, queries, strict=False):
        if query.is_bound:
            panel = panel.override_by_query(letter, [DynamicConfigValue("custom.lineStyle", _DASHED)])
    if limits is not None:
        panel = panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    return _finished(panel, title, description, unit, queries, width, limits, runbooks)


def number(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 4,
    height: int = 4,
    limits: Limits | None = None,
    runbooks: Sequence[str] = (),
    words: Mapping[int, str] | None = None,
) -> stat.Panel:
    """Returns a panel of the last value in large digits, with its course behind; `words` stand for values."""
    panel = (
        stat.Panel()
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(BigValueGraphMode.AREA)
        .color_mode(BigValueColorMode.VALUE)
        .height(height)
    )
    if words is not None:
        panel = panel.mappings([ValueMap({str(value): ValueMappingResult(text=word) for value, word in words.items()})])
    return _finished(panel, title, description, unit, queries, width, limits, runbooks)


def _finished(
    panel: AnyPanel,
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Query],
    width: int,
    limits: Limits | None,
    runbooks: Sequence[str],
) -> AnyPanel:
    panel.title(title).description(description).unit(unit).span(width).datasource(PROMETHEUS).thresholds(_steps(limits))
    for letter, query in zip(_LETTERS, queries, strict=False):
        panel.with_target(
            prometheus.Dataquery()
            .ref_id(letter)
            .datasource(PROMETHEUS)
            .expr(query.expr)
            .legend_format(query.legend)
            .range()
        )
    return panel.links([_runbook(alert) for alert in runbooks])


def _steps(limits: Limits | None) -> dashboard.ThresholdsConfig:
    steps: list[tuple[float | None, str]] = [(None, "green")]
    if limits is not None and limits.low_is_bad:
        steps = [(None, "red"), (limits.red, "yellow"), (limits.yellow, "green")]
    elif limits is not None:
        steps = [(None, "green"), (limits.yellow, "yellow"), (limits.red, "red")]
    if limits is not None and limits.red == limits.yellow:
        del steps[1]
    return (
        dashboard.ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(value=value, color=colour) for value, colour in steps])
    )


def _runbook(alert: str) -> dashboard.DashboardLink:
    """The way to an alert's runbook, on the page that the dashboard's variable names."""
    return dashboard.DashboardLink(f"Runbook: {alert}").url(f"{RUNBOOKS}#{alert.lower()}").target_blank(True)
