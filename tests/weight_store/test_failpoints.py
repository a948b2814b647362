"""Failpoints: out of reach unless the process was started for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from preceptor_service import failpoints


def started_with(variable: str | None) -> subprocess.CompletedProcess[str]:
    """A process that comes to a failpoint three times and says so."""
    program = (
        "from preceptor_service.failpoints import reached\n"
        "for number in range(3):\n"
        "    reached('blob-named')\n"
        "    print(number, flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.pop("PRECEPTOR_FAILPOINT", None)
    if variable is not None:
        environment["PRECEPTOR_FAILPOINT"] = variable
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.parametrize(
    ("variable", "said", "status"),
    [
        (None, "0\n1\n2\n", 0),
        ("", "0\n1\n2\n", 0),
        ("blob-durable", "0\n1\n2\n", 0),
        ("blob-named", "", -signal.SIGKILL),
        ("blob-named:3", "0\n1\n", -signal.SIGKILL),
    ],
)
def test_a_process_dies_where_its_environment_says(variable: str | None, said: str, status: int) -> None:
    ended = started_with(variable)

    assert (ended.stdout, ended.returncode) == (said, status)


def test_a_place_that_does_not_exist_is_refused_at_start() -> None:
    ended = started_with("blob-nmaed")

    assert ended.returncode == 1
    assert "PRECEPTOR_FAILPOINT is 'blob-nmaed'; choose from upload-opened," in ended.stderr


def test_nothing_is_armed_here() -> None:
    for point in failpoints.FAILPOINTS:
        failpoints.reached(point)
