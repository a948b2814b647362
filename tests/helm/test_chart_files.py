"""The chart's own files agree with each other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.binaries import HELMS, binary
from tests.helm.rendering import CHART

ROOT = CHART.parents[1]


@pytest.mark.parametrize("script", ["readme.py", "schema.py"])
def test_what_is_made_from_other_files_is_up_to_date(script: str) -> None:
    told = subprocess.run(
        [sys.executable, ROOT / "helm" / script, "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 0, told.stderr


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", (CHART / "README.md").read_text())

    assert links
    assert [link for link in links if not (CHART / link).exists()] == []


def test_the_schema_is_strict_everywhere() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    loose: list[str] = []

    def visit(node: Any, path: str) -> None:
        if isinstance(node, dict):
            if "properties" in node and node.get("additionalProperties") is not False:
                loose.append(path)
            for key, item in node.items():
                visit(item, f"{path}/{key}")
        elif isinstance(node, list):
            for number, item in enumerate(node):
                visit(item, f"{path}/{number}")

    visit(schema, "")
    assert loose == []


def test_the_schema_knows_exactly_the_values() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    assert values.keys() | {"global"} == schema["properties"].keys()
    for name in values.keys() - {"config", "scorerGroups", "head", "gateway"}:
        known = schema["properties"][name].get("properties")
        if known is not None:
            assert values[name].keys() == known.keys(), name


def test_templates_are_small() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in (CHART / "templates").iterdir()}

    assert {name: length for name, length in lengths.items() if length > 150} == {}


def test_the_chart_says_what_artifact_hub_asks() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    images = yaml.safe_load(chart["annotations"]["artifacthub.io/images"])
    changes = yaml.safe_load(chart["annotations"]["artifacthub.io/changes"])

    assert chart["annotations"]["artifacthub.io/license"] == "Apache-2.0"
    assert [image["image"] for image in images] == [f"preceptor:{chart['appVersion']}"]
    assert {change["kind"] for change in changes} <= {"added", "changed", "deprecated", "removed", "fixed", "security"}
    assert chart["appVersion"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_what_the_readme_of_the_repository_installs_is_not_refused() -> None:
    commands = re.findall(r"helm (?:install) [^`\n]+", (ROOT / "README.md").read_text())
    assert commands
    for command in commands:
        words = command.replace("helm install", "template", 1).split()
        told = subprocess.run(
            [binary(HELMS[0]), *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert told.returncode == 0, f"{command}: {told.stderr}"


@pytest.mark.parametrize("part", ["head", "scorerGroups"])
def test_what_the_values_say_that_a_part_takes_is_what_the_schema_knows(part: str) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = schema["$defs"]["scorerGroup"] if part == "scorerGroups" else schema["properties"][part]
    before, _, _ = (CHART / "values.yaml").read_text().partition(f"\n{part}:\n")
    comment = before.rpartition("\n\n")[2].replace("\n# ", " ")
    _, _, names = comment.partition("akes")
    told = {name.strip(" :.") for name in re.split(r"[,;()]|and|where [^)]*", names) if name.strip(" :.")}

    assert told - {"pods", "0 to let it wait"} == known["properties"].keys()


def test_the_packaged_chart_carries_all_that_its_readme_leads_to(tmp_path: Path) -> None:
    for helm in HELMS:
        folder = tmp_path / helm
        subprocess.run(
            [binary(helm), "package", CHART, "--destination", folder], capture_output=True, timeout=60, check=True
        )
        (package,) = folder.glob("preceptor-*.tgz")
        listed = subprocess.run(["tar", "tzf", package], capture_output=True, text=True, timeout=60, check=True).stdout

        assert "preceptor/values.schema.json\n" in listed
        assert "preceptor/rules/alerts.yaml\n" in listed
        assert "preceptor/ci/gpu-values.yaml\n" in listed
