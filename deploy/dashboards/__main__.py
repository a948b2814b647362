"""Writes the dashboards' JSON; `--check` compares instead.

python -m deploy.dashboards [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.dashboards.one_run import one_run
from deploy.dashboards.overview import overview
from deploy.dashboards.scorers import scorers

OUT = Path(__file__).resolve().parents[2] / "helm" / "preceptor" / "dashboards"
DASHBOARDS = {"overview": overview, "run": one_run, "scorers": scorers}


def as_json(name: str) -> str:
    """Returns the dashboard called `name`, the same text every time."""
    built = json.loads(JSONEncoder().encode(DASHBOARDS[name]().build()))
    return json.dumps(_shown(built), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def _shown(node: Any) -> Any:
    """Drops what the SDK says of every link and annotation: that it belongs into a menu, where nobody looks."""
    if isinstance(node, list):
        return [_shown(item) for item in node]
    if isinstance(node, dict):
        return {key: _shown(value) for key, value in node.items() if value != "inControlsMenu"}
    return node


def main(arguments: list[str]) -> None:
    """Writes the files, or exits 1 naming each that differs from its code."""
    differing = []
    OUT.mkdir(exist_ok=True)
    for name in DASHBOARDS:
        path, text = OUT / f"{name}.json", as_json(name)
        if arguments != ["--check"]:
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            differing.append(path.name)
    if differing:
        raise SystemExit(f"{', '.join(differing)} differ from their code; run 'python -m deploy.dashboards'")


if __name__ == "__main__":
    main(sys.argv[1:])
