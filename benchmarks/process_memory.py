"""Memory of a process, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path

MB = 1_000_000


def resident_mb(pid: int) -> dict[str, float]:
    """Returns MB of resident memory: all (`rss`), without shared memory (`own`), and proportional (`pss`)."""
    status = _kilobytes(Path(f"/proc/{pid}/status"), "RssAnon", "RssFile", "RssShmem")
    rollup = _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss")
    own = status["RssAnon"] + status["RssFile"]
    in_kilobytes = {"own": own, "rss": own + status["RssShmem"], "pss": rollup["Pss"]}
    return {name: round(value * 1024 / MB, 1) for name, value in in_kilobytes.items()}


def anonymous_mb(pid: int) -> float:
    """Returns MB of resident memory that is neither shared nor a file's: heaps and stacks."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "RssAnon")["RssAnon"] * 1024 / MB


def _kilobytes(path: Path, *names: str) -> dict[str, int]:
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return {name: int(fields[name].split()[0]) for name in names}
