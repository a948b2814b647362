"""What the dashboards share around their panels: variables, links to each other, annotations."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from deploy.dashboards.panels import FIRING, GATEWAY, JOB, PROMETHEUS, RUNBOOKS, Query, Row

TAG = "preceptor"
_ALL = VariableOption(text="All", value="$__all")


def framed(
    uid: str,
    title: str,
    description: str,
    rows: Sequence[Row],
    variables: Sequence[dashboard.QueryVariable],
    annotations: Sequence[dashboard.AnnotationQuery] = (),
) -> dashboard.Dashboard:
    """Returns a dashboard; `uid` never changes, so that links to it live on."""
    framed = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .link(
            dashboard.DashboardLink("Preceptor")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
        .link(
            dashboard.DashboardLink("Runbooks")
            .type(DashboardLinkType.LINK)
            .url(RUNBOOKS)
            .icon("doc")
            .target_blank(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        # Where docs/alerts.md is to be read, which only those know who installed it: the chart fills it in.
        .with_variable(dashboard.ConstantVariable("runbooks").value(""))
    )
    for variable in variables:
        framed.with_variable(variable)
    for annotation in (_alerts_firing(), *annotations):
        framed.annotation(annotation)
    numbers = itertools.count(1)
    for row in rows:
        framed.with_row(dashboard.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            framed.with_panel(panel.id(next(numbers)))
    return framed


def installation() -> list[dashboard.QueryVariable]:
    """The variables that choose gateways."""
    return [
        choice("namespace", "Namespace", "label_values(preceptor_build_info, namespace)"),
        choice("job", "Job", 'label_values(preceptor_build_info{namespace=~"$namespace"}, job)'),
        choice("instance", "Gateway", f"label_values(preceptor_build_info{{{JOB}}}, instance)"),
    ]


def run(many: bool) -> dashboard.QueryVariable:
    """The variable that chooses one run, or several."""
    query = f"label_values(preceptor_super_batches_total{{{GATEWAY}}}, run)"
    return choice("run", "Run", query) if many else _variable("run", "Run", query)


def choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """A variable of several values, by default all of them, and also those without that label."""
    return _variable(name, label, query).multi(True).include_all(True).all_value(".*").current(_ALL)


def marks(name: str, query: Query, colour: str) -> dashboard.AnnotationQuery:
    """Vertical lines where `query` answers."""
    return (
        dashboard.AnnotationQuery()
        .name(name)
        .datasource(PROMETHEUS)
        .enable(True)
        .icon_color(colour)
        .expr(query.expr)
        .title_format(query.legend)
    )


def _alerts_firing() -> dashboard.AnnotationQuery:
    return marks("Alerts", Query(FIRING, "{{alertname}}"), "red")


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(PROMETHEUS)
        .query({"query": query, "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )
