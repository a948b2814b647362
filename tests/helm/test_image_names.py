"""One name per image: what bake pushes is what the chart pulls, and what every page says."""

from __future__ import annotations

import re
from pathlib import Path

import hcl2
import pytest

from tests.helm.rendering import CHART, render

ROOT = CHART.parents[1]
_NAME = re.compile(r"[a-z0-9./-]*preceptor[a-z0-9./-]*:[0-9]+\.[0-9]+\.[0-9]+[a-z0-9-]*")
_TEXTS = {".md", ".yaml", ".yml", ".tpl", ".txt", ".sh", ".example"}
PLACES = ("README.md", "docs", "deploy", "helm", "examples")


def tags(repository: str | None = None) -> dict[str, str]:
    """Returns target → the name that bake gives its image; by default where `REPOSITORY` is not set."""
    with (ROOT / "deploy/docker/docker-bake.hcl").open() as file:
        parsed = hcl2.load(file)
    variables = {
        name.strip('"'): str(body.get("default", "")).strip('"')
        for block in parsed["variable"]
        for name, body in block.items()
        if isinstance(body, dict)
    }
    if repository is not None:
        variables["REPOSITORY"] = repository
    found = {}
    for block in parsed["target"]:
        for target, body in block.items():
            for tag in body.get("tags", []):
                found[target.strip('"')] = re.sub(r"\$\{(\w+)\}", lambda match: variables[match[1]], tag.strip('"'))
    return found


def named(path: Path) -> list[str]:
    """Returns the images of ours that a text names, without their registry."""
    found = _NAME.findall(path.read_text())
    return [re.sub(r"^[^/]*\.[^/]*/", "", name) for name in found]


def test_every_target_has_a_name() -> None:
    assert set(tags()) == {"service", "service-cuda", "trainer"}


def test_the_chart_runs_what_bake_makes() -> None:
    assert render("minimal").container("head")["image"] == tags()["service"]
    assert render("gpu").container("l4")["image"] == tags()["service-cuda"]


def test_every_page_calls_the_images_so() -> None:
    files = [ROOT / place for place in PLACES if (ROOT / place).is_file()]
    files += [file for place in PLACES for file in (ROOT / place).rglob("*") if file.suffix in _TEXTS]
    found = {str(file.relative_to(ROOT)): named(file) for file in files}

    assert len([file for file, names in found.items() if names]) >= 4
    assert {file: set(names) - set(tags().values()) for file, names in found.items()} == {file: set() for file in found}


@pytest.mark.parametrize("page", ["deploy/README.md", "docs/operations.md", "helm/preceptor/README.md"])
def test_the_chart_pulls_what_was_pushed_by_the_command_on_the_page(page: str) -> None:
    (repository,) = re.findall(r"^REPOSITORY=(\S+)", (ROOT / "deploy/README.md").read_text(), re.MULTILINE)
    (registry,) = set(re.findall(r"image: \{registry: ([\w.:/-]+)\}", (ROOT / page).read_text()))
    for values, target in (("minimal", "service"), ("gpu", "service-cuda")):
        rendering = render(values, {"image": {"registry": registry}})
        assert rendering.container("head")["image"] == tags(repository)[target]
