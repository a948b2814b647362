"""Generates the committed stubs of `proto/` into `clients/python/`; `--check` compares instead.

Run with the grpcio-tools pinned in `constraints.txt`: stubs load on newer runtimes than the one
that generated them, never on older ones.
"""

from __future__ import annotations

import filecmp
import sys
import sysconfig
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent
OUT = PROTO.parent / "clients" / "python"
PACKAGE = Path("preceptor/v1")


def generate(out: Path) -> None:
    """Writes `*_pb2.py` and typed `*_pb2.pyi` of every proto file below `out`."""
    include = resources.files("grpc_tools") / "_proto"
    sources = sorted(str(path) for path in PROTO.glob("preceptor/v1/*.proto"))
    plugin = Path(sysconfig.get_path("scripts")) / "protoc-gen-mypy"
    command = ["protoc", f"-I{PROTO}", f"-I{include}", f"--plugin=protoc-gen-mypy={plugin}"]
    command += [f"--python_out={out}", f"--mypy_out={out}"]
    if protoc.main([*command, *sources]) != 0:
        raise SystemExit("protoc failed")


def main() -> None:
    """Writes the stubs, or exits 1 naming each stub that differs from its proto."""
    if sys.argv[1:] != ["--check"]:
        generate(OUT)
        return
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = sorted(path.name for path in (Path(scratch) / PACKAGE).iterdir())
        _, differing, missing = filecmp.cmpfiles(Path(scratch) / PACKAGE, OUT / PACKAGE, fresh, shallow=False)
    if differing or missing:
        raise SystemExit(f"stubs differ from proto/: {differing + missing}; run 'make stubs'")


if __name__ == "__main__":
    main()
