"""The proof `overload` in seconds."""

from __future__ import annotations

import pytest

from tests.reliability import overload


@pytest.mark.long
def test_five_times_what_can_be_done_takes_nothing_from_what_is_done() -> None:
    figures, raw = overload.run(short=True)

    assert [figure for figure in figures if figure.is_missed] == [], raw
