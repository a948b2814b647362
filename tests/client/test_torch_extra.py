"""`preceptor[torch]` is all that a trainer needs to build the architecture that its run names."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

BUILD_WITHOUT = """
import json
import sys

absent = set(json.loads(sys.argv[1]))


class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent)
import preceptor.torch
from preceptor_service.models import ArchitectureRegistry

config = {"in_channels": 1, "image_size": 8, "num_classes": 10, "width": 4}
print(type(ArchitectureRegistry().build("small_cnn", config)).__name__)
"""


def distributions(requirements: list[str]) -> set[str]:
    found = (re.match(r"[\w.-]+", requirement) for requirement in requirements)
    return {re.sub(r"[-_.]+", "-", name[0]).lower() for name in found if name} - {"preceptor"}


def test_the_torch_extra_covers_building_an_architecture(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    installed = distributions([*project["dependencies"], *extras["torch"]])
    left_out = distributions([requirement for extra in extras.values() for requirement in extra]) - installed
    absent = [module for module, owners in packages_distributions().items() if distributions(owners) & left_out]
    assert {"ray", "grpc_health", "prometheus_client", "typer", "rich", "yaml", "safetensors"} <= set(absent)

    built = subprocess.run(
        [sys.executable, "-c", BUILD_WITHOUT, json.dumps(absent)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert (built.stderr, built.returncode) == ("", 0)
    assert built.stdout.strip()
