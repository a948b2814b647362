"""The rule files as the tests read them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).resolve().parents[2] / "helm" / "preceptor" / "rules"
RULE_FILES = (RULES / "recording.yaml", RULES / "alerts.yaml")
TEST_FILES = sorted((Path(__file__).parent / "rules").glob("*.test.yaml"))

_WINDOW = re.compile(r"(?<=\[)(\w+)(?=[\]:])|(?<=\boffset )(\w+)")


def rules() -> Iterator[dict[str, Any]]:
    """Every rule of every file."""
    for path in RULE_FILES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def alerts() -> list[dict[str, Any]]:
    """Every alert."""
    return [rule for rule in rules() if "alert" in rule]


def write_faster(folder: Path, factor: int = 60) -> list[Path]:
    """Writes copies of the rule files in which every window, offset and `for` is `factor` times shorter.

    Nothing else changes, so what fires there within seconds fires from the real files within minutes.
    """
    written = []
    for path in RULE_FILES:
        content = yaml.safe_load(path.read_text())
        for group in content["groups"]:
            for rule in group["rules"]:
                rule["expr"] = _WINDOW.sub(lambda window: _shorter(window[0], factor), rule["expr"])
                if "for" in rule:
                    rule["for"] = _shorter(rule["for"], factor)
        written.append(folder / path.name)
        written[-1].write_text(yaml.safe_dump(content))
    return written


def _shorter(duration: str, factor: int) -> str:
    unit_ms = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}[duration[-1]]
    return f"{int(duration[:-1]) * unit_ms // factor}ms"
