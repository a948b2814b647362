"""The short form of the proof `fuzz`."""

from __future__ import annotations

import pytest

from tests.reliability import fuzz


@pytest.mark.slow
def test_malformed_messages_end_no_process_and_are_answered_as_malformed() -> None:
    figures, raw = fuzz.run(short=True)
    assert [figure.name for figure in figures if figure.is_missed] == [], raw
