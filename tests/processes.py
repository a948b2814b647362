"""Processes of this machine by what they call themselves, for tests that kill one."""

from __future__ import annotations

from pathlib import Path


def pids_titled(title: str) -> set[int]:
    """The ids of the living processes whose command line begins with `title`."""
    found = set()
    for command_line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if command_line.read_bytes().decode(errors="replace").startswith(title):
                found.add(int(command_line.parent.name))
        except OSError:
            continue
    return found
