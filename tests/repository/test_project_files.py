"""The files around the code agree with each other: changelog, Makefile, pins, licence."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    return found


def test_the_changelog_has_an_unreleased_section_first_with_something_in_it(repository: Path) -> None:
    sections = re.split(r"^## ", (repository / "CHANGELOG.md").read_text(), flags=re.MULTILINE)

    assert sections[1].startswith("[Unreleased]\n")
    assert re.search(r"^- ", sections[1], re.MULTILINE)


def test_the_licence_is_apache_2(repository: Path, project: dict[str, object]) -> None:
    assert project["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (repository / "LICENSE").read_text()


def test_a_base_install_requires_four_packages(project: dict[str, object]) -> None:
    assert {Requirement(text).name for text in strings(project["dependencies"])} == {
        "grpcio", "numpy", "protobuf", "pyarrow",
    }  # fmt: skip


def test_every_requirement_has_a_pin_that_satisfies_it(repository: Path, project: dict[str, object]) -> None:
    lines = (repository / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    requirements = [*strings(project["dependencies"]), *(text for extra in extras.values() for text in strings(extra))]

    unmet = [
        str(requirement)
        for requirement in map(Requirement, requirements)
        if requirement.name != "preceptor"
        and not requirement.specifier.contains(versions.get(canonicalize_name(requirement.name), "0"))
    ]

    assert unmet == []


def test_make_help_tells_every_target(repository: Path) -> None:
    makefile = (repository / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)

    command = ["make", "--no-print-directory", "help"]
    told = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True, timeout=60)

    assert {line.split()[0] for line in told.stdout.splitlines()} == set(phony.split())


def strings(value: object) -> list[str]:
    """Returns `value` as the list of strings that it has to be."""
    assert isinstance(value, list)
    return [str(item) for item in value]
