"""The dashboards are what their code says, explain themselves, and ask only for what exists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.dashboards.__main__ import generated
from preceptor_service.metrics import METRICS
from tests.observability.dashboard_files import DASHBOARDS, NAMES, PanelQuery, panels, queries, read
from tests.observability.known_metrics import known, names_of
from tests.observability.queries import TARGET_LABELS, labels_of, metrics_of
from tests.observability.rule_files import alerts, rules

EVERY_QUERY = [query for name in NAMES for query in queries(name)]
EVERY_PANEL = [pytest.param(panel, id=f"{name}-{panel['title']}") for name in NAMES for panel in panels(name)]
VARIABLES = {
    "namespace": ".*",
    "job": ".*",
    "instance": ".*",
    "run": "a-run",
    "application": ".*",
    "__rate_interval": "1m",
}

SHOWN_NOWHERE: dict[str, str] = {}
"""Metrics that no dashboard and no rule asks for, each with the reason."""


def test_what_is_committed_is_what_its_code_says() -> None:
    for path, text in generated().items():
        assert path.read_text() == text, f"{path.name}: run 'python -m deploy.dashboards'"


def test_no_dashboard_is_left_over() -> None:
    assert {path.stem for path in DASHBOARDS.iterdir()} == set(NAMES)
    assert {path for path in generated() if path.suffix == ".json"} == set(DASHBOARDS.iterdir())


def test_addresses_of_dashboards_never_change() -> None:
    assert [read(name)["uid"] for name in NAMES] == ["preceptor-overview", "preceptor-run", "preceptor-scorers"]


@pytest.mark.parametrize("name", NAMES)
def test_every_query_goes_to_the_chosen_data_source(name: str) -> None:
    sources = [node for node in _nodes(read(name)) if "datasource" in node]
    assert {json.dumps(node["datasource"], sort_keys=True) for node in sources} == {
        '{"type": "prometheus", "uid": "${datasource}"}'
    }
    for panel in panels(name):
        assert "datasource" in panel
        assert all("datasource" in target for target in panel["targets"])


@pytest.mark.parametrize("name", NAMES)
def test_gateways_and_runs_can_be_chosen(name: str) -> None:
    variables = {variable["name"]: variable for variable in read(name)["templating"]["list"]}
    assert {"datasource", "namespace", "job", "instance", "run"} <= variables.keys()
    assert variables["run"]["multi"] == (name != "run")
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(read(name)))) - {"__rate_interval", "__all"}
    assert used == variables.keys()


@pytest.mark.parametrize("name", NAMES)
def test_dashboards_lead_to_each_other_and_to_the_runbooks(name: str) -> None:
    links = read(name)["links"]
    assert [link["tags"] for link in links if link["type"] == "dashboards"] == [["preceptor"]]
    assert [link["url"] for link in links if link["type"] == "link"] == ["${runbooks}"]
    assert "preceptor" in read(name)["tags"]


def test_every_alert_has_a_panel_that_leads_to_its_runbook() -> None:
    linked = {link["url"] for name in NAMES for panel in panels(name) for link in panel["links"]}
    runbooks = {alert["annotations"]["runbook_url"] for alert in alerts()}
    assert {url.replace("${runbooks}", "docs/alerts.md") for url in linked} == runbooks


@pytest.mark.parametrize("name", NAMES)
def test_no_link_is_relative_to_grafana(name: str) -> None:
    urls = [node["url"] for node in _nodes(read(name)) if node.get("url")]
    (variable,) = [item for item in read(name)["templating"]["list"] if item["name"] == "runbooks"]
    assert urls
    assert [url for url in urls if not url.startswith("${runbooks}")] == []
    assert (variable["type"], variable["hide"], variable["query"]) == ("constant", 2, "")


@pytest.mark.parametrize("panel", EVERY_PANEL)
def test_a_panel_says_what_it_shows_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None
    assert panel["targets"]
    assert all(target["legendFormat"] for target in panel["targets"])


def test_floating_point_operations_are_called_so() -> None:
    units = {panel["fieldConfig"]["defaults"]["unit"] for panel in _asking("_flops")}
    assert units == {"flops", "si:FLOP"}


def test_the_weight_store_is_up_or_down() -> None:
    (panel,) = _asking("preceptor_store_up")
    (words,) = panel["fieldConfig"]["defaults"]["mappings"]
    assert {value: shown["text"] for value, shown in words["options"].items()} == {"1": "up", "0": "down"}


def _asking(text: str) -> list[dict[str, Any]]:
    """Returns the panels that have `text` in a query."""
    found = [panel for name in NAMES for panel in panels(name)]
    return [panel for panel in found if any(text in target["expr"] for target in panel["targets"])]


@pytest.mark.parametrize("name", NAMES)
def test_panels_fill_rows_without_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in read(name)["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    titles = [panel["title"] for panel in panels(name)]
    assert len(titles) == len(set(titles))
    ids = [panel["id"] for panel in read(name)["panels"]]
    assert ids == list(range(1, len(ids) + 1))


@pytest.mark.parametrize("query", EVERY_QUERY, ids=lambda query: f"{query.dashboard}-{query.panel}-{query.legend}")
def test_a_panel_asks_only_for_metrics_and_labels_that_exist(query: PanelQuery) -> None:
    labels = labels_of(query.filled_in(VARIABLES), known())
    assert set(re.findall(r"{{(\w+)}}", query.legend)) <= labels
    shown = labels - TARGET_LABELS
    assert shown <= set(re.findall(r"{{(\w+)}}", query.legend)), "series that differ bear different legends"


@pytest.mark.parametrize("name", NAMES)
def test_variables_and_annotations_ask_only_for_what_exists(name: str) -> None:
    for variable in read(name)["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert found
            query = PanelQuery(name, variable["name"], found[1], "").filled_in(VARIABLES)
            assert found[2] in labels_of(query, known())
    for annotation in read(name)["annotations"]["list"]:
        labels_of(PanelQuery(name, annotation["name"], annotation["expr"], "").filled_in(VARIABLES), known())


@pytest.mark.parametrize("name", NAMES)
def test_alerts_shown_are_those_of_the_chosen_installation_and_those_of_none(name: str) -> None:
    asked = [query.expr for query in queries(name)] + [mark["expr"] for mark in read(name)["annotations"]["list"]]
    shown = [expr for expr in asked if "ALERTS" in expr]
    assert shown
    for expr in shown:
        assert 'namespace=~"$namespace|", job=~"$job|"' in expr


def test_alerts_name_the_installation_that_they_are_about() -> None:
    of_none = {alert["alert"] for alert in alerts() if not {"namespace", "job"} <= labels_of(alert["expr"], known())}
    assert of_none == set()


def test_rules_ask_only_for_metrics_and_labels_that_exist() -> None:
    for rule in rules():
        labels = labels_of(rule["expr"], known()) | rule.get("labels", {}).keys()
        named = re.findall(r"\$labels\.(\w+)", str(rule.get("annotations", "")))
        assert set(named) <= labels, rule.get("alert")


def test_every_metric_is_shown_or_watched() -> None:
    asked: set[str] = set()
    for query in EVERY_QUERY:
        asked |= metrics_of(query.filled_in(VARIABLES))
    for rule in rules():
        asked |= metrics_of(rule["expr"])
    unused = {metric.name for metric in METRICS if not asked & names_of(metric)}
    assert unused == SHOWN_NOWHERE.keys()


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _nodes(child)
