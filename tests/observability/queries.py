"""Which metrics and labels a PromQL query asks for, and which labels its answer has.

A query that names a label which its metric lacks is answered, with nothing: only a reading of the query finds it.
"""

from __future__ import annotations

from collections.abc import Mapping

import promql_parser as promql

TARGET_LABELS = frozenset({"namespace", "job", "instance", "pod"})
"""What Prometheus adds to every sample of a target; the chart's PodMonitor adds namespace and pod."""

Labels = frozenset[str]


class QueryError(Exception):
    """A query asks for a metric or a label that does not exist."""


def metrics_of(query: str) -> set[str]:
    """The names of the metrics that a query selects."""
    return _metrics(promql.parse(query))


def without_stand_in(query: str) -> str:
    """The query without the number that it answers where it finds nothing: that one is always there."""
    parsed = promql.parse(query)
    if isinstance(parsed, promql.BinaryExpr) and str(parsed.op) == "or" and not _metrics(parsed.rhs):
        return str(parsed.lhs.prettify())
    return query


def labels_of(query: str, known: Mapping[str, Labels]) -> Labels:
    """The labels of a query's answer.

    Args:
        query: PromQL without Grafana's variables.
        known: the labels of every metric that may be used, without those of the target.

    Raises:
        QueryError: the query selects an unknown metric, or a label that what it selects from does not have.
    """
    return _labels(promql.parse(query), known)


def _metrics(expression: promql.Expr) -> set[str]:
    found: set[str] = set()

    def visit(node: promql.Expr) -> None:
        selector = node.vector_selector if isinstance(node, promql.MatrixSelector) else node
        if isinstance(selector, promql.VectorSelector):
            found.add(selector.name or "")

    promql.walk(expression, visit)
    return found


def _labels(node: promql.Expr, known: Mapping[str, Labels]) -> Labels:
    match node:
        case promql.VectorSelector():
            return _selected(node, known)
        case promql.MatrixSelector():
            return _selected(node.vector_selector, known)
        case promql.SubqueryExpr() | promql.ParenExpr() | promql.UnaryExpr():
            return _labels(node.expr, known)
        case promql.AggregateExpr():
            return _aggregated(node, known)
        case promql.BinaryExpr():
            return _joined(node, known)
        case promql.Call():
            return _called(node, known)
        case _:
            return frozenset()


def _selected(selector: promql.VectorSelector, known: Mapping[str, Labels]) -> Labels:
    name = selector.name or ""
    if name not in known:
        raise QueryError(f"there is no metric {name!r}")
    labels = known[name] | TARGET_LABELS
    _require({matcher.name for matcher in selector.matchers.matchers}, labels, name)
    return labels


def _aggregated(node: promql.AggregateExpr, known: Mapping[str, Labels]) -> Labels:
    inner = _labels(node.expr, known)
    if node.modifier is None:
        return frozenset()
    named = frozenset(node.modifier.labels)
    _require(named, inner, node.expr.prettify())
    return named if node.modifier.type == promql.AggModifierType.By else inner - named


def _joined(node: promql.BinaryExpr, known: Mapping[str, Labels]) -> Labels:
    left, right = _labels(node.lhs, known), _labels(node.rhs, known)
    modifier = node.modifier
    matching = modifier.matching if modifier else None
    named = frozenset(matching.labels) if matching else frozenset()
    if matching and matching.type == promql.LabelModifierType.Include:
        _require(named, left, node.lhs.prettify())
        _require(named, right, node.rhs.prettify())
    operator = str(node.op)
    if operator == "or":
        return left if not _metrics(node.rhs) else left & right  # a number stands in where nothing is on the left
    if operator in ("and", "unless"):
        return left
    if not left or not right:  # a number or a sum of everything
        return left | right
    if modifier and modifier.card in (promql.VectorMatchCardinality.ManyToOne, promql.VectorMatchCardinality.OneToMany):
        many = left if modifier.card == promql.VectorMatchCardinality.ManyToOne else right
        return many | frozenset(modifier.group_labels or ())
    return left - (named if matching and matching.type == promql.LabelModifierType.Exclude else frozenset())


def _called(node: promql.Call, known: Mapping[str, Labels]) -> Labels:
    labels: Labels = frozenset()
    for argument in node.args:
        labels |= _labels(argument, known)
    if node.func.name == "histogram_quantile":
        _require({"le"}, labels, node.prettify())
        return labels - {"le"}
    if node.func.name == "label_replace":
        return labels | {node.args[1].val}
    return labels


def _require(named: set[str] | Labels, labels: Labels, where: str) -> None:
    missing = set(named) - labels
    if missing:
        raise QueryError(f"{where} has no label {', '.join(sorted(missing))}; it has {', '.join(sorted(labels))}")
