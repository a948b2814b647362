"""A dashboard can be drawn from its JSON: every query is asked, and what has no data still has its place."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from deploy.dashboards.pictures import Line, draw
from tests.observability.dashboard_files import NAMES, queries, read


@pytest.mark.parametrize("name", NAMES)
def test_every_query_is_drawn(name: str, tmp_path: Path) -> None:
    asked = []

    def ask(query: str) -> list[Line]:
        asked.append(query)
        values = [math.nan, 0.0, 1.5, 20.0][: len(asked) % 5]
        return [Line({"run": "a-run"}, list(range(len(values))), values)] if values else []

    draw(read(name), ask, 0.0, 60.0, tmp_path / "picture.png")
    assert sorted(asked) == sorted(query.expr for query in queries(name))
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 1500
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10
