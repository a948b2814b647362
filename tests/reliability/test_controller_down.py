"""The short form of `controller-down`: seconds without Serve's controller and without the GCS cost no step."""

from __future__ import annotations

import pytest

from tests.reliability import controller_down


@pytest.mark.ray
@pytest.mark.long
def test_no_step_fails_while_the_controller_or_the_gcs_is_away() -> None:
    figures, raw = controller_down.run(short=True)
    assert [figure for figure in figures if figure.is_missed] == [], raw
