"""`preceptor serve` as it is without flags: on a Ray of its own, which ends with it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from preceptor import SelectionClient
from tests.cli.conftest import Serving
from tests.ray.candidates import COUNT, expected, ready_run, spec, super_batch

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_it_selects_and_leaves_no_process(
    serve: Callable[..., Serving], tmp_path: Path, number: signal.Signals
) -> None:
    serving = serve(tmp_path / "store", "--pool", "ray", "--scorers", "2")
    settings = spec("on-ray")
    with SelectionClient(f"127.0.0.1:{serving.port()}", timeout_s=60) as client:
        run = ready_run(client, settings)
        assert run.select(super_batch(1), COUNT, step=1).indices.tolist() == expected(settings, 1)
        started = psutil.Process(serving.process.pid).children(recursive=True)
        assert serving.end(number) == 0
    assert serving.out.endswith("stopped\n")
    assert "Traceback" not in serving.out
    assert len(started) > 5
    assert [process for process in started if process.is_running()] == []
