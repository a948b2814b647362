"""Writes the dashboards' JSON; `--check` compares instead.

python -m deploy.dashboards [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.dashboards.metrics_page import page
from deploy.dashboards.one_run import one_run
from deploy.dashboards.overview import overview
from deploy.dashboards.scorers import scorers

ROOT = Path(__file__).resolve().parents[2]
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


def generated() -> dict[Path, str]:
    """Returns every file that is written, with what it holds."""
    files = {ROOT / "helm" / "preceptor" / "dashboards" / f"{name}.json": as_json(name) for name in DASHBOARDS}
    return {**files, ROOT / "docs" / "metrics.md": page()}


def main(arguments: list[str]) -> None:
    """Writes the files, or exits 1 naming each that differs from its code."""
    differing = []
    for path, text in generated().items():
        if arguments != ["--check"]:
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            differing.append(str(path.relative_to(ROOT)))
    if differing:
        raise SystemExit(f"{', '.join(differing)} differ from their code; run 'python -m deploy.dashboards'")


if __name__ == "__main__":
    main(sys.argv[1:])
