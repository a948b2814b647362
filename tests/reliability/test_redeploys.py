"""The short form of `redeploys`: an application that is deployed anew fails no super-batch."""

from __future__ import annotations

import pytest

from preceptor_service.ray_cluster import RayCluster
from tests.reliability import redeploys


@pytest.mark.ray
@pytest.mark.long
def test_no_super_batch_fails_while_replicas_are_replaced() -> None:
    cluster = RayCluster()
    try:
        figures, raw = redeploys.run(short=True)
    finally:
        cluster.stop()
    assert [figure for figure in figures if figure.is_missed] == [], raw
