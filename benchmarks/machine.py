"""What a result was taken on: commit and hardware, without names of hosts or paths."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
_MEASURED_PACKAGES = ("ray", "grpcio", "protobuf", "pyarrow", "numpy", "torch")


def commit() -> str:
    """Returns the commit that was measured, with `+changes` where the measured code differs from it."""
    head = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "clients", "services", "benchmarks/*.py")
    return f"{head}+changes" if changed else head


def hardware() -> dict[str, str | int | float]:
    """Returns processor, cores and memory."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "load_average_1min": round(os.getloadavg()[0], 2),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }


def versions() -> dict[str, str]:
    """Returns the versions of what was measured with."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _MEASURED_PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"  # Ray, where only the in-process pool is measured


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _git(*arguments: str) -> str:
    answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    return answer.stdout.strip()
