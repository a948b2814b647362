from __future__ import annotations

import pytest

from preceptor_service.reference import demo_data
from tests.prerequisites import lacking


@pytest.fixture(scope="session")
def fashion_mnist() -> None:
    """Needs the data set."""
    try:
        demo_data.fashion_mnist("t10k", 0)
    except demo_data.DataMissingError as error:
        lacking(str(error))
