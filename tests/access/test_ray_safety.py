"""Ray runs code for whoever reaches its ports: an old one is refused, an open one is warned of."""

from __future__ import annotations

import logging
import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from preceptor_service.config import ConfigError
from preceptor_service.process_log import LOG_TO
from preceptor_service.ray_cluster import RayCluster, _stay_on_this_machine, _want_token

_ON_OTHER_ADDRESSES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


class FakeRay(SimpleNamespace):
    """Ray as far as `RayCluster` looks at it."""

    def __init__(self, version: str, dashboard_url: str) -> None:
        super().__init__(__version__=version, serve=SimpleNamespace(start=lambda **settings: None))
        self._dashboard_url = dashboard_url
        self.settings: dict[str, Any] = {}

    def is_initialized(self) -> bool:
        return False

    def init(self, **settings: Any) -> SimpleNamespace:
        self.settings = settings
        return SimpleNamespace(dashboard_url=self._dashboard_url)


def test_a_ray_that_is_started_here_stays_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setenv(_ON_OTHER_ADDRESSES, "")
    monkeypatch.delenv(_ON_OTHER_ADDRESSES)
    _stay_on_this_machine()
    assert os.environ[_ON_OTHER_ADDRESSES] == "0"


def test_a_ray_that_is_started_here_asks_for_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that what is set here goes with the test
        monkeypatch.delenv(name)
    _want_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def join(monkeypatch: pytest.MonkeyPatch, version: str = "2.60.0", dashboard_url: str = "") -> FakeRay:
    ray = FakeRay(version, dashboard_url)
    monkeypatch.setitem(sys.modules, "ray", ray)
    RayCluster()
    return ray


@pytest.mark.parametrize("version", ["2.59.1", "2.9.0", "1.13.0"])
def test_a_ray_older_than_2_60_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    with pytest.raises(ConfigError, match=f"Ray is {version}"):
        join(monkeypatch, version)


@pytest.mark.parametrize(("mode", "warns"), [(None, True), ("disabled", True), ("token", False)])
def test_a_cluster_without_tokens_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: str | None, warns: bool
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    join(monkeypatch)
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert bool(warned) == warns
    assert all("whoever reaches the ports of this Ray can run code on it" in record.message for record in warned)


@pytest.mark.parametrize(
    ("url", "warns"), [("10.0.0.1:8265", True), ("0.0.0.0:8265", True), ("127.0.0.1:8265", False), ("", False)]
)
def test_a_dashboard_beyond_loopback_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str, warns: bool
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    join(monkeypatch, dashboard_url=url)
    assert ("the dashboard of this Ray listens on" in caplog.text) == warns


def test_a_ray_of_its_own_has_no_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv(LOG_TO, "")  # no relay: this Ray is never stopped
    assert join(monkeypatch).settings["include_dashboard"] is False


@pytest.mark.parametrize(("raised", "becomes"), [(Exception, ConfigError), (OSError, OSError)])
def test_a_ray_that_does_not_come_up_in_time_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, raised: type[Exception], becomes: type[Exception]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv(LOG_TO, "")

    def init(self: FakeRay, **_: Any) -> SimpleNamespace:
        raise raised("The current node timed out during startup.")

    monkeypatch.setattr(FakeRay, "init", init)
    with pytest.raises(becomes, match="timed out during startup") as told:
        join(monkeypatch)
    assert (becomes is ConfigError) == ("use the pool in-process" in str(told.value))
