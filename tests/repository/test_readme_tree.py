"""The README's annotated tree is the repository's tree.

The tree is the fenced block after the line `<!-- tree -->`. One path a line, two spaces of indentation a level, a
folder ends in `/`, and two or more spaces stand between a path and what it is for:

    clients/python/preceptor/   what a trainer imports
      client.py                 the façade
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.repository.tracked import ROOT, tracked_files

PACKAGES = (Path("clients/python/preceptor"), Path("services/preceptor_service"))
LINE = re.compile(r"(?P<indent>(?:  )*)(?P<path>\S+)(?:\s{2,}(?P<purpose>\S.*))?")


def parsed(readme: str) -> dict[Path, str]:
    """Returns path → purpose of each line of the tree.

    Raises:
        ValueError: there is no tree, or a line that is not of it.
    """
    block = re.search(r"^<!-- tree -->\s*^```\w*\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    if block is None:
        raise ValueError("README.md has no fenced block after a line <!-- tree -->")
    entries: dict[Path, str] = {}
    open_folders: list[Path] = []
    for line in filter(str.strip, block[1].splitlines()):
        match = LINE.fullmatch(line)
        depth = len(match["indent"]) // 2 if match else 0
        if match is None or depth > len(open_folders):
            raise ValueError(f"cannot read this line of the tree: {line!r}")
        path = (open_folders[depth - 1] if depth else Path()) / match["path"]
        entries[path] = match["purpose"] or ""
        open_folders = [*open_folders[:depth], *([path] if match["path"].endswith("/") else [])]
    return entries


@pytest.fixture(scope="module")
def tree() -> dict[Path, str]:
    return parsed((ROOT / "README.md").read_text())


def test_every_path_in_the_tree_is_in_the_repository(tree: dict[Path, str]) -> None:
    real = {path for file in tracked_files() for path in (file, *file.parents)}

    assert sorted(map(str, tree.keys() - real)) == []


def test_every_path_in_the_tree_says_what_it_is_for(tree: dict[Path, str]) -> None:
    assert [str(path) for path, purpose in tree.items() if not purpose] == []


def test_every_visible_top_level_entry_is_in_the_tree(tree: dict[Path, str]) -> None:
    top_level = {file.parts[0] for file in tracked_files()}

    assert sorted(name for name in top_level - {path.parts[0] for path in tree} if not name.startswith(".")) == []


def test_every_module_of_both_packages_is_in_the_tree(tree: dict[Path, str]) -> None:
    modules = {
        file
        for file in tracked_files()
        if file.suffix == ".py" and any(map(file.is_relative_to, PACKAGES)) and not file.stem.endswith("_pb2")
    }

    assert sorted(str(file) for file in modules - tree.keys() if file.name != "__init__.py") == []


def test_a_tree_is_read_by_its_indentation() -> None:
    text = "x\n<!-- tree -->\n```text\na/b/   letters\n  c.py  a letter\n  d/  more\n    e.py  e\nf.md   last\n```\n"

    assert {str(path): purpose for path, purpose in parsed(text).items()} == {
        "a/b": "letters", "a/b/c.py": "a letter", "a/b/d": "more", "a/b/d/e.py": "e", "f.md": "last",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "<!-- tree -->\n```\n  a.py  too deep\n```\n", "<!-- tree -->\n```\n a.py  odd\n```\n"]
)
def test_what_is_no_tree_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="tree"):
        parsed(text)
