"""The short form of the proofs `fuzz-…`, all against one service."""

from __future__ import annotations

import pytest

from tests.reliability import fuzz


@pytest.mark.slow
def test_malformed_messages_end_no_process_and_are_answered_as_malformed() -> None:
    figures, raw = fuzz.run(fuzz.SURFACES, short=True)
    assert [figure.name for figure in figures if figure.is_missed] == [], raw
