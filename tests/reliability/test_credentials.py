"""The short form of the proof `credentials`."""

from __future__ import annotations

import pytest

from tests.cluster.hosts import can_make_hosts
from tests.prerequisites import lacking
from tests.reliability import credentials
from tests.reliability.ports import answering_ports


def test_every_rpc_answers_every_kind_of_credentials_as_expected() -> None:
    figures, raw = credentials.run(short=True)
    assert [figure.name for figure in figures if figure.is_missed] == [], raw


@pytest.mark.parametrize(
    "pool",
    [
        pytest.param("in-process", marks=pytest.mark.slow),
        pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.long]),
    ],
)
def test_another_host_reaches_the_gateway_and_the_metrics_and_nothing_else(pool: str) -> None:
    if not can_make_hosts():
        lacking("network namespaces (root and iproute2)")
    found = answering_ports(pool)
    assert found.answering == found.wanted, found.raw()
