"""docs/metrics.md names every metric, and the queries that it offers can be asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.dashboards.metrics_page import HOW_TO_ASK
from preceptor_service.metrics import METRICS, QUESTIONS
from tests.observability.known_metrics import ours
from tests.observability.queries import labels_of


def test_every_metric_is_on_the_page_once(repository: Path) -> None:
    lines = (repository / "docs" / "metrics.md").read_text().splitlines()
    for metric in METRICS:
        rows = [line for line in lines if line.startswith(f"| `{metric.exposed_name}` |")]
        assert len(rows) == 1
        assert metric.meaning in rows[0]
        assert metric.kind in rows[0]
        assert all(f"`{label}`" in rows[0] for label in metric.labels)


def test_every_question_is_answered() -> None:
    assert HOW_TO_ASK.keys() == QUESTIONS.keys()


@pytest.mark.parametrize("query", [query for _, queries in HOW_TO_ASK.values() for query in queries])
def test_queries_ask_only_for_what_exists(query: str) -> None:
    labels_of(query, ours())
