"""The short form of the proof `fuzz-guided`."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from tests.prerequisites import lacking
from tests.reliability import fuzz_guided


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="atheris is installed for Python 3.11 only")
def test_inputs_that_are_looked_for_by_what_they_reach_are_no_trouble() -> None:
    if importlib.util.find_spec("atheris") is None:
        lacking("the package atheris")
    figures, raw = fuzz_guided.run(short=True)
    assert [figure.name for figure in figures if figure.is_missed] == [], raw
