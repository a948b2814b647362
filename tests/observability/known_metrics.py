"""Every metric that rules and dashboards may ask for, with its labels: ours, Ray's and Prometheus' own."""

from __future__ import annotations

from preceptor_service.metrics import METRICS, Metric
from tests.observability.queries import Labels, labels_of
from tests.observability.rule_files import rules

_REPLICA = frozenset({"application", "deployment", "replica"})
_NODE = frozenset({"ip"})

RAY: dict[str, Labels] = {
    "ray_cluster_active_nodes": frozenset({"node_type"}),
    "ray_node_cpu_utilization": _NODE,
    "ray_node_disk_utilization_percentage": _NODE,
    "ray_node_mem_total": _NODE,
    "ray_node_mem_used": _NODE,
    "ray_object_store_used_memory": frozenset({"NodeAddress"}),
    "ray_serve_deployment_queued_queries": frozenset({"application", "deployment"}),
    "ray_serve_deployment_replica_healthy": _REPLICA,
    "ray_serve_deployment_replica_starts_total": _REPLICA,
    "ray_serve_deployment_status": frozenset({"application", "deployment"}),
    "ray_serve_replica_processing_queries": _REPLICA,
    "ray_serve_replica_utilization_percent": _REPLICA,
}
"""Ray's own, as Ray 2.60 serves them; the live test finds each of them with these labels."""

RAY_ON_GPUS: dict[str, Labels] = {
    "ray_node_gpus_utilization": frozenset({"ip", "GpuIndex"}),
    "ray_node_gram_used": frozenset({"ip", "GpuIndex"}),
}
"""Ray's own that need a GPU."""

PROMETHEUS: dict[str, Labels] = {
    "up": frozenset(),
    "ALERTS": frozenset({"alertname", "alertstate", "severity"}),
}


def names_of(metric: Metric) -> set[str]:
    """The names of a metric's series."""
    if metric.kind == "histogram":
        return {f"{metric.exposed_name}_{part}" for part in ("bucket", "count", "sum")}
    return {metric.exposed_name}


def ours() -> dict[str, Labels]:
    """Every series of the table."""
    return {
        name: frozenset(metric.labels) | ({"le"} if name.endswith("_bucket") else set())
        for metric in METRICS
        for name in names_of(metric)
    }


def known() -> dict[str, Labels]:
    """All that may be asked for, recorded series included."""
    metrics = ours() | RAY | RAY_ON_GPUS | PROMETHEUS
    for rule in rules():
        if "record" in rule:
            metrics[rule["record"]] = labels_of(rule["expr"], metrics)
    return metrics
