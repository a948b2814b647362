"""The proof `memory-in-process` in seconds: it tells a leak from none."""

from __future__ import annotations

import pytest

from tests.reliability import memory
from tests.reliability.memory import FIRST, LAST, Life, Stretch


@pytest.mark.slow
def test_a_leak_in_the_gateway_or_in_scorers_is_told_from_none() -> None:
    figures, raw = memory.in_process(short=True)

    assert [figure for figure in figures if figure.is_missed] == [], raw


def test_growth_is_that_of_all_the_requests_whatever_single_samples_say() -> None:
    requests = list(range(0, 2_001, 10))
    leaking = [{"gateway": 200 + number * 40e-6 + 30 * (number % 70 == 0)} for number in requests]

    growth = Life(Stretch(1_000, 2_000), requests=requests, memory_mb=leaking).growth("gateway")

    assert growth.mb == pytest.approx(40e-6 * (LAST - FIRST), rel=0.05)
    assert growth.percent == pytest.approx(100 * growth.mb / 200, rel=0.01)


def test_a_pause_in_what_is_told_takes_the_nearest_samples() -> None:
    life = Life(Stretch(1_000, 2_000), requests=[0, 990, 2_010], memory_mb=[{"gateway": mb} for mb in (0.0, 200, 201)])

    assert life.growth("gateway").mb == pytest.approx(1 / 1_020 * (LAST - FIRST))
