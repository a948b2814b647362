"""The proof `herd` in seconds."""

from __future__ import annotations

import pytest

from tests.reliability import herd


@pytest.mark.slow
def test_trainers_whose_gateway_is_killed_all_come_back_at_once_when_the_next_one_is_there() -> None:
    figures, raw = herd.run(short=True)

    assert [figure for figure in figures if figure.is_missed] == [], raw
