"""The proof `cancel` in seconds."""

from __future__ import annotations

import pytest

from tests.reliability import cancel


@pytest.mark.slow
def test_trainers_that_give_up_or_go_silent_leave_nothing() -> None:
    figures, raw = cancel.run(short=True)

    assert [figure for figure in figures if figure.is_missed] == [], raw
