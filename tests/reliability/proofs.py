"""★ The proofs: each does something bad to the real service and counts what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from benchmarks.machine import ROOT
from benchmarks.results import markdown
from benchmarks.suite import Measured, Suite
from tests.reliability import (
    atomic_push,
    cancel,
    chaos,
    controller_down,
    credentials,
    fuzz,
    fuzz_guided,
    herd,
    memory,
    one_version,
    overload,
    redeploys,
    resume,
    seeded_bugs,
    state_machines,
)
from tests.reliability.promises import summary

PROOFS: Mapping[str, Callable[[bool], Measured]] = {
    "atomic-push": atomic_push.run,
    "cancel": cancel.run,
    "chaos": chaos.run,
    "controller-down": controller_down.run,
    "credentials": credentials.run,
    **{f"fuzz-{surface}": partial(fuzz.run, [surface]) for surface in fuzz.SURFACES},
    "fuzz-guided": fuzz_guided.run,
    "herd": herd.run,
    "memory-in-process": memory.in_process,
    "memory-on-ray": memory.on_ray,
    "one-version": one_version.run,
    "overload": overload.run,
    "redeploys": redeploys.run,
    "resume": resume.run,
    "seeded-bugs": seeded_bugs.run,
    "state-machine-store": state_machines.store,
    "state-machine-stream": state_machines.stream,
}
"""Name, as on the command line → what proves it; True: in seconds."""


def suite(short: bool) -> Suite:
    """Returns the proofs, in their form of seconds or whole."""
    return Suite(
        command="python -m tests.reliability",
        members={name: partial(run, short) for name, run in PROOFS.items()},
        results=Path(__file__).resolve().parent / "results",
        page=ROOT / "docs" / "reliability.md",
        tables={"promises": summary, "results": markdown},
    )
