"""The built wheel in a fresh environment: what a trainer gets who installs `preceptor` without extras."""

from __future__ import annotations

import json
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.outside import run
from tests.prerequisites import lacking

HEAVY = {"pydantic", "ray", "safetensors", "torch", "transformers", "typer", "yaml"}


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, cwd=repository)
    assert built.returncode == 0, built.stderr
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def base_install(repository: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that holds the wheel and what it requires, pinned as in CI."""
    home = tmp_path_factory.mktemp("base-install")
    venv.create(home, with_pip=True, symlinks=True)
    installed = run(
        *(home / "bin/python", "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"),
        *("--constraint", repository / "constraints.txt", wheel),
        cwd=home,
    )
    if installed.returncode != 0:
        lacking(f"a package index that has what the base install requires: {installed.stderr.strip()[-500:]}")
    return home / "bin"


def test_the_wheel_holds_both_typed_packages_and_the_licence_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"preceptor", "preceptor_service"}
    assert {"preceptor/py.typed", "preceptor_service/py.typed", "preceptor/v1/run_pb2.pyi"} <= set(names)
    assert "preceptor_service/report/page.html" in names
    assert [name for name in names if name.endswith("licenses/LICENSE")] != []


def test_a_base_install_imports_the_client_without_ray_or_torch(base_install: Path, tmp_path: Path) -> None:
    script = "import json, sys, preceptor; print(json.dumps([preceptor.__file__, sorted(sys.modules)]))"

    answer = run(base_install / "python", "-W", "error", "-c", script, cwd=tmp_path)

    assert answer.returncode == 0, answer.stderr
    path, modules = json.loads(answer.stdout)
    assert Path(path).is_relative_to(base_install.parent)
    assert {"grpc", "numpy", "pyarrow"} <= set(modules)
    assert HEAVY & set(modules) == set()


def test_a_base_install_brings_no_heavy_package_along(base_install: Path, tmp_path: Path) -> None:
    script = "from importlib import metadata; print(*{d.name.lower() for d in metadata.distributions()})"

    answer = run(base_install / "python", "-c", script, cwd=tmp_path)

    assert {"grpcio", "numpy", "preceptor", "protobuf", "pyarrow"} <= set(answer.stdout.split())
    assert (HEAVY | {"pyyaml"}) & set(answer.stdout.split()) == set()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["serve"], ["status"]], ids=" ".join)
def test_the_command_of_a_base_install_says_which_extra_it_needs(
    base_install: Path, tmp_path: Path, arguments: list[str]
) -> None:
    answer = run(base_install / "preceptor", *arguments, cwd=tmp_path)

    assert answer.returncode != 0
    assert "preceptor[service]" in answer.stderr
    assert "Traceback" not in answer.stderr
