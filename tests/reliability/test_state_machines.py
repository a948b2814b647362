"""The short forms of the proofs `state-machine-…`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.suite import Measured
from tests.reliability import state_machines


@pytest.mark.slow
@pytest.mark.parametrize("stories", [state_machines.stream, state_machines.store])
def test_whatever_the_order_the_service_does_what_a_plain_model_says(stories: Callable[[bool], Measured]) -> None:
    figures, raw = stories(True)
    assert [figure.name for figure in figures if figure.is_missed] == [], raw
