"""What a test does where the machine has not what it needs: skip on a laptop, fail in CI."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def lacking(what: str) -> NoReturn:
    """Skips the test for lack of `what`; fails it in CI, which has to have everything."""
    if os.environ.get("CI"):
        pytest.fail(f"CI lacks {what}")
    pytest.skip(f"this machine lacks {what}")
