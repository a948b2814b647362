"""The committed dashboards as the tests read them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).resolve().parents[2] / "helm" / "preceptor" / "dashboards"
NAMES = ("overview", "run", "scorers")


@dataclass(frozen=True)
class PanelQuery:
    """One query of one panel."""

    dashboard: str
    panel: str
    expr: str
    legend: str

    def filled_in(self, variables: Mapping[str, str]) -> str:
        """The query with values in place of Grafana's variables."""
        return re.sub(r"\$(\w+)", lambda name: variables[name[1]], self.expr)


def read(name: str) -> dict[str, Any]:
    """A dashboard."""
    dashboard: dict[str, Any] = json.loads((DASHBOARDS / f"{name}.json").read_text())
    return dashboard


def panels(name: str) -> list[dict[str, Any]]:
    """The panels of a dashboard, without its rows."""
    return [panel for panel in read(name)["panels"] if panel["type"] != "row"]


def queries(name: str) -> Iterator[PanelQuery]:
    """Every query of a dashboard's panels."""
    for panel in panels(name):
        for target in panel["targets"]:
            yield PanelQuery(name, panel["title"], target["expr"], target["legendFormat"])
