"""`preceptor health`: the exit status that a probe reads."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import Ran, Serving

Run = Callable[..., Ran]


def test_a_gateway_that_serves_is_healthy(preceptor: Run, service: Serving) -> None:
    ran = preceptor("health", "--target", f"127.0.0.1:{service.port()}")
    assert (ran.code, ran.out, ran.err) == (0, "serving\n", "")


def test_a_gateway_that_went_away_is_not(preceptor: Run, serve: Callable[..., Serving], tmp_path: Path) -> None:
    serving = serve(tmp_path / "store")
    target = f"127.0.0.1:{serving.port()}"
    serving.end(signal.SIGTERM)
    ran = preceptor("health", "--target", target, "--timeout", "2")
    assert (ran.code, ran.out) == (1, "")
    assert f"Health to {target}" in ran.err


def test_a_target_that_is_none_is_said_to_be(preceptor: Run) -> None:
    ran = preceptor("health", "--target", "nowhere")
    assert (ran.code, ran.out) == (1, "")
    assert "target is 'nowhere'" in ran.err
