"""The proofs `state-machine-…`: random orders of what trainers and gateways do, each step compared with a model."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from rich.progress import MofNCompleteColumn, Progress

from benchmarks.results import Figure
from benchmarks.suite import Measured
from preceptor_service.app import start_service
from tests.reliability.store_machine import StoreMachine
from tests.reliability.stream_machine import StreamMachine
from tests.service.conftest import config, target_of

STREAM_STORIES, SHORT_STREAM_STORIES = 500, 10
STORE_STORIES, SHORT_STORE_STORIES = 5000, 30
_STEPS = 30


def stream(short: bool) -> Measured:
    """Tells stories of a trainer and its gateway."""
    with tempfile.TemporaryDirectory() as folder:
        service = start_service(config(Path(folder)))
        StreamMachine.target = target_of(service)
        try:
            return _told(StreamMachine, SHORT_STREAM_STORIES if short else STREAM_STORIES)
        finally:
            service.stop()


def store(short: bool) -> Measured:
    """Tells stories of gateways and their weight store."""
    return _told(StoreMachine, SHORT_STORE_STORIES if short else STORE_STORIES)


def _told(machine: type[StreamMachine] | type[StoreMachine], count: int) -> Measured:
    """Tells so many; the first that disagrees with the model ends them, and is told as short as it can be."""
    how = settings(
        max_examples=count,
        stateful_step_count=_STEPS,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    disagreement, began = "", time.monotonic()
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as progress:
        task = progress.add_task("stories", total=count)

        def teardown(self: Any) -> None:
            machine.teardown(self)
            progress.advance(task)

        counted: Any = type(f"Counted{machine.__name__}", (machine,), {"checked": 0, "teardown": teardown})
        try:
            run_state_machine_as_test(counted, settings=how)
        except (AssertionError, ExceptionGroup) as error:
            disagreement = "\n".join([str(error), *getattr(error, "__notes__", ())])
    figures = [
        Figure(f"stories of up to {_STEPS} steps", count, ""),
        Figure("outcomes compared", counted.checked, ""),
        Figure("disagreements with the model", bool(disagreement), "", 0),
    ]
    return figures, {"seconds": round(time.monotonic() - began, 1), "disagreement": disagreement}
