"""Writes the table of values into the chart's README, from the comments in values.yaml.

    python helm/readme.py           # writes it
    python helm/readme.py --check   # status 1 where the README differs

A comment `# -- text` describes the key below it: the row shows its whole value. A key without one is described by its
own keys. Lines that follow within the same comment belong to the text.
"""

# ruff: noqa: INP001 - a script beside the chart, not a package

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parent / "preceptor"
_BEGIN, _END = "<!-- values -->\n", "<!-- /values -->\n"
_KEY = re.compile(r"(?P<indent> *)(?P<key>[\w-]+):(?: |$)")
_LONGEST_DEFAULT = 80


def described(text: str) -> dict[tuple[str, ...], str]:
    """Returns path of a key → its description, of every key that has one."""
    found: dict[tuple[str, ...], str] = {}
    path: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            comment = [stripped.removeprefix("# -- ")]
        elif stripped.startswith("# ") and comment:
            comment.append(stripped.removeprefix("# "))
        elif (match := _KEY.match(line)) is not None:
            path = [*path[: len(match["indent"]) // 2], match["key"]]
            if comment:
                found[tuple(path)] = " ".join(comment)
            comment = []
        else:
            comment = []
    return found


def rows(values: Any, descriptions: dict[tuple[str, ...], str], path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yields a row for each described key, in the order of the file.

    Raises:
        ValueError: neither a key nor any above or below it has a description.
    """
    if path in descriptions:
        yield f"| `{'.'.join(path)}` | {_default(values)} | {descriptions[path].replace('|', chr(92) + '|')} |"
        return
    if not isinstance(values, dict):
        raise ValueError(f"values.yaml: {'.'.join(path)} has no description; put a line '# -- ...' above it")
    for key, value in values.items():
        yield from rows(value, descriptions, (*path, key))


def _default(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return f"`{text}`" if len(text) <= _LONGEST_DEFAULT else "see [values.yaml](values.yaml)"


def with_table(readme: str, text: str) -> str:
    """Returns the README with the table of the values in `text`."""
    before, _, rest = readme.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    table = "\n".join(["| value | default | meaning |", "|---|---|---|", *rows(yaml.safe_load(text), described(text))])
    return f"{before}{_BEGIN}{table}\n{_END}{after}"


def main() -> int:
    """Writes the table, or compares it."""
    parser = argparse.ArgumentParser(description="Write the table of values into the chart's README.")
    parser.add_argument("--check", action="store_true", help="only compare")
    is_check = parser.parse_args().check
    readme = CHART / "README.md"
    found = readme.read_text()
    wanted = with_table(found, (CHART / "values.yaml").read_text())
    if is_check:
        if found != wanted:
            sys.stderr.write("helm/preceptor/README.md differs from values.yaml; run python helm/readme.py\n")
        return int(found != wanted)
    readme.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
