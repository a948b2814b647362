"""What tests of rules, dashboards and metrics share."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Lets the SDK prefer its own next schema: every Grafana in use reads the classic one."""
    config.addinivalue_line("filterwarnings", "ignore:Prefer using dashboardv2:DeprecationWarning")
