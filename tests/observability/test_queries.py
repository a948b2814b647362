"""The reader of queries finds what Prometheus would answer with silence."""

from __future__ import annotations

import pytest

from tests.observability.queries import TARGET_LABELS, Labels, QueryError, labels_of, metrics_of, without_stand_in

BOTH = {"run", "code"}
KNOWN: dict[str, Labels] = {
    "answers_total": frozenset({"run"}),
    "failures_total": frozenset({"run", "code"}),
    "latency_bucket": frozenset({"stage", "le"}),
}


@pytest.mark.parametrize(
    ("query", "labels"),
    [
        ("sum(rate(answers_total[5m]))", set()),
        ("sum by (run) (rate(answers_total[5m]))", {"run"}),
        ("max without (code) (failures_total)", {"run"} | TARGET_LABELS),
        ("histogram_quantile(0.9, sum by (le, stage) (rate(latency_bucket[5m])))", {"stage"}),
        ("sum by (run, code) (failures_total) / ignoring (code) group_left () sum by (run) (answers_total)", BOTH),
        ("sum by (run) (failures_total) / on (run) group_left () sum by (run) (answers_total)", {"run"}),
        ("sum by (job, run) (answers_total or failures_total)", {"job", "run"}),
        ('sum by (code) (failures_total) or on () label_replace(vector(0), "code", "none", "", "")', {"code"}),
        ("avg_over_time((answers_total > bool 0)[10m:])", {"run"} | TARGET_LABELS),
        ("time() - max by (run) (answers_total)", {"run"}),
    ],
)  # fmt: skip
def test_the_labels_of_an_answer_are_known(query: str, labels: set[str]) -> None:
    assert labels_of(query, KNOWN) == labels


@pytest.mark.parametrize(
    ("query", "left"),
    [
        ("count(answers_total) or vector(0)", "count(answers_total)"),
        ('answers_total or on () label_replace(vector(0), "run", "none", "", "")', "answers_total"),
        ("answers_total or failures_total", "answers_total or failures_total"),
        ("rate(answers_total[5m])", "rate(answers_total[5m])"),
    ],
)
def test_a_number_that_stands_in_is_left_out(query: str, left: str) -> None:
    assert without_stand_in(query) == left


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("answer_total", "there is no metric 'answer_total'"),
        ('rate(answers_total{code="OK"}[5m])', "answers_total has no label code"),
        ("sum by (run, code) (answers_total)", "answers_total has no label code"),
        ("failures_total and on (code) answers_total", "answers_total has no label code"),
        ("sum by (code) (answers_total or failures_total)", "has no label code"),
        ("histogram_quantile(0.9, sum by (stage) (latency_bucket))", "has no label le"),
    ],
)
def test_what_does_not_exist_is_found(query: str, complaint: str) -> None:
    with pytest.raises(QueryError, match=complaint):
        labels_of(query, KNOWN)


def test_metrics_are_found_wherever_they_stand() -> None:
    query = "sum(rate(a_total[5m])) / on () group_left () (b and on (run) last_over_time(c[1h])) > bool max(d)"
    assert metrics_of(query) == {"a_total", "b", "c", "d"}
