"""The files that git tracks: what a clean clone has."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def tracked_files() -> tuple[Path, ...]:
    """Returns every tracked file that exists, relative to the root of the checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return tuple(path for path in map(Path, listed.stdout.split("\0")) if path.name and (ROOT / path).is_file())


@cache
def tracked_texts() -> dict[Path, str]:
    """Returns the text of every tracked file that is text."""
    texts = {}
    for path in tracked_files():
        content = (ROOT / path).read_bytes()
        if b"\0" not in content:
            texts[path] = content.decode()
    return texts
