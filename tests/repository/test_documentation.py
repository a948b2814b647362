"""What the pages promise is there: every link leads somewhere, every command of ours exists with its options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from preceptor_service.cli.main import app
from tests.repository.tracked import ROOT, tracked_files

PAGES = sorted(path for path in tracked_files() if path.suffix == ".md")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^ *```.*?^ *```|^(?: {4}).*?$", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=map(str, PAGES))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = FENCE.sub("", (ROOT / page).read_text())
    lost = []
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        is_page = linked.suffix == ".md" and linked.exists()
        if not linked.exists() or (anchor and is_page and anchor not in anchors(linked.resolve().relative_to(ROOT))):
            lost.append(target)

    assert lost == []


def commands() -> list[tuple[str, str]]:
    """Every `preceptor …` line of a fenced block, and every quoted one that has an option."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text().replace("\\\n", " ")
        lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
        lines += re.findall(r"`(preceptor [a-z-]+ --?[^`]*)`", text)
        found += [(str(page), line.strip()) for line in lines if line.strip().startswith("preceptor ")]
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_of_ours_exists_with_its_options(page: str, line: str) -> None:
    words = shlex.split(re.split(r" [|>&]| \d>", line)[0], comments=True)[1:]
    command: Any = typer.main.get_command(app)
    while subcommands := getattr(command, "commands", None):
        name = words.pop(0)
        assert name in subcommands
        command = subcommands[name]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert [word for word in words if re.match(r"--?[a-z]", word) and word.split("=")[0] not in known] == []


def test_pages_have_commands_of_ours() -> None:
    assert len(commands()) > 10
