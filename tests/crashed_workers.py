"""A pytest worker whose interpreter died is told of, and its tests are run again; a test that ends it twice has failed.

Some thousand calls of gRPC and of torch in one interpreter end it now and then by a signal, in no test in particular.
pytest-xdist 3.8 counts that as a failure and then waits forever: the files that it gives a new worker are done.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController


class FileScheduling(LoadFileScheduling):  # type: ignore[misc]  # it has no types
    """`--dist loadfile` that outlives its workers."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        super().__init__(config, log)
        self.crashed: set[str] = set()
        """Tests that ended a worker."""

    def _reschedule(self, node: WorkerController) -> None:
        """Keeps two tests ahead of a worker that has told its tests: it begins none before it knows the next."""
        if node not in self.registered_collections:
            return
        super()._reschedule(node)
        while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            super()._reschedule(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FileScheduling | None:
    return FileScheduling(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, report: pytest.TestReport, sched: Any) -> None:
    """The first time it is no failure yet: the test is among those that are given back."""
    if isinstance(sched, FileScheduling) and crashitem not in sched.crashed:
        sched.crashed.add(crashitem)
        report.outcome = "rerun"  # type: ignore[assignment]  # what plugins that run tests again say


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.stats.get("rerun", ()):
        terminalreporter.write_line(f"RUN AGAIN {report.nodeid}: the interpreter of its worker died")
