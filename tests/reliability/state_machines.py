"""The proof `state-machines`: random orders of everything trainers and gateways do, each step compared with a model."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from benchmarks.results import Figure
from benchmarks.suite import Measured
from preceptor_service.app import start_service
from tests.reliability.store_machine import StoreMachine
from tests.reliability.stream_machine import StreamMachine
from tests.service.conftest import config, target_of

_STORIES = {StreamMachine: (2000, 10), StoreMachine: (5000, 30)}
"""Stories in the full form and in the short one."""
_STEPS = 30


def run(short: bool) -> Measured:
    """Tells so many stories; the first that disagrees with its model ends them, and is told as short as it can be."""
    figures: list[Figure] = []
    raw: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        service = start_service(config(Path(folder)))
        StreamMachine.target = target_of(service)
        try:
            for machine, name in ((StreamMachine, "stream protocol"), (StoreMachine, "weight store")):
                figures += _told(machine, name, _STORIES[machine][short], raw)
        finally:
            service.stop()
    return figures, raw


def _told(
    machine: type[StreamMachine] | type[StoreMachine], name: str, count: int, raw: dict[str, Any]
) -> list[Figure]:
    machine.checked, began = 0, time.monotonic()
    how = settings(
        max_examples=count,
        stateful_step_count=_STEPS,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    disagreement = ""
    try:
        run_state_machine_as_test(machine, settings=how)
    except (AssertionError, ExceptionGroup) as error:
        disagreement = "\n".join([str(error), *getattr(error, "__notes__", ())])
    raw[name] = {"seconds": round(time.monotonic() - began, 1), "disagreement": disagreement}
    return [
        Figure(f"{name}: stories of up to {_STEPS} steps", count, ""),
        Figure(f"{name}: outcomes compared", machine.checked, ""),
        Figure(f"{name}: disagreements with the model", bool(disagreement), "", 0),
    ]
