"""The chart as real helm renders it."""

from __future__ import annotations

import functools
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.helm.binaries import HELMS, binary

CHART = Path(__file__).resolve().parents[2] / "helm" / "preceptor"
VALUES = tuple(sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml")))
"""Names of the value sets in `ci/`."""
KUBERNETES = ("1.27.0", "1.30.0", "1.33.0", "1.35.0")
RELEASE, NAMESPACE = "demo", "selection"

Manifest = dict[str, Any]


class _OnceEach(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, as an API server does; PyYAML itself keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(set(keys)) == len(keys), f"a key twice among {keys}"
        return super().construct_mapping(node, deep)


class RefusedError(Exception):
    """Helm did not render; the text is what it says."""


@dataclass(frozen=True)
class Rendering:
    """All objects of one rendering."""

    objects: tuple[Manifest, ...]

    def one(self, kind: str, name: str | None = None) -> Manifest:
        """Returns the only object of this kind, or the one of this name."""
        found = [item for item in self.of(kind) if name is None or item["metadata"]["name"] == name]
        assert len(found) == 1, [item["metadata"]["name"] for item in self.of(kind)]
        return found[0]

    def of(self, kind: str) -> list[Manifest]:
        """Returns every object of this kind."""
        return [item for item in self.objects if item["kind"] == kind]

    @property
    def cluster(self) -> Manifest:
        """The Ray cluster inside the RayService."""
        config: Manifest = self.one("RayService")["spec"]["rayClusterConfig"]
        return config

    @property
    def serve(self) -> Manifest:
        """The Serve configuration inside the RayService."""
        config: Manifest = yaml.safe_load(self.one("RayService")["spec"]["serveConfigV2"])
        return config

    @property
    def config(self) -> Manifest:
        """What the service gets as its configuration."""
        (application,) = self.serve["applications"]
        arguments: Manifest = application["args"]
        return arguments

    @property
    def groups(self) -> dict[str, Manifest]:
        """Group name → worker group."""
        return {group["groupName"]: group for group in self.cluster["workerGroupSpecs"]}

    @property
    def templates(self) -> dict[str, Manifest]:
        """`head` or a group's name → its pod template."""
        head = {"head": self.cluster["headGroupSpec"]["template"]}
        return head | {name: group["template"] for name, group in self.groups.items()}

    def container(self, group: str) -> Manifest:
        """Returns the only container of a group's pods."""
        (container,) = self.templates[group]["spec"]["containers"]
        found: Manifest = container
        return found


def render(
    values: str = "minimal",
    changes: Manifest | None = None,
    *,
    helm: str = HELMS[0],
    kubernetes: str = KUBERNETES[-1],
    release: str = RELEASE,
) -> Rendering:
    """Returns what helm renders of a value set of `ci/`, with `changes` on top.

    Raises:
        RefusedError: helm refuses, by the schema or by a check of the chart.
    """
    return _rendered(values, json.dumps(changes or {}), helm, kubernetes, release)


@functools.cache
def _rendered(values: str, changes: str, helm: str, kubernetes: str, release: str) -> Rendering:
    command: list[str | Path] = [
        binary(helm),
        "template",
        release,
        CHART,
        "--namespace",
        NAMESPACE,
        "--kube-version",
        kubernetes,
    ]
    command += ["--values", CHART / "ci" / f"{values}-values.yaml", "--values", "-"]
    told = subprocess.run(command, input=changes, capture_output=True, text=True, timeout=60, check=False)
    if told.returncode:
        raise RefusedError(told.stderr)
    return Rendering(tuple(filter(None, yaml.load_all(told.stdout, _OnceEach))))
