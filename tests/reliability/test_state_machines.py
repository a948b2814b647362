"""The short form of the proof `state-machines`."""

from __future__ import annotations

import pytest

from tests.reliability import state_machines


@pytest.mark.slow
def test_whatever_the_order_the_service_does_what_a_plain_model_says() -> None:
    figures, raw = state_machines.run(short=True)
    assert [figure.name for figure in figures if figure.is_missed] == [], raw
