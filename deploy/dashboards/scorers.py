"""*Scorers and Ray*: the machines behind a selection, by our gauges and by Ray's own metrics."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from deploy.dashboards.frame import choice, framed, installation, run
from deploy.dashboards.panels import GATEWAY, JOB, RATE, RUN, Limits, Query, Row, graph, number

_SERVE = f'{JOB}, application=~"$application"'


def scorers() -> dashboard.Dashboard:
    """Returns the dashboard."""
    return framed(
        uid="preceptor-scorers",
        title="Preceptor / Scorers and Ray",
        description=(
            "Whether there are enough scorers, what they are busy with, and how Serve's replicas and Ray's nodes are."
        ),
        rows=[_glance(), _load(), _serve(), _nodes()],
        variables=[
            *installation(),
            run(many=True),
            choice("application", "Application", f"label_values(ray_serve_deployment_status{{{JOB}}}, application)"),
        ],
    )


def _glance() -> Row:
    return Row(
        "At a glance",
        [
            number(
                "Scorers running",
                "Scorers that take micro-batches.",
                "short",
                Query(f'max(preceptor_scorers{{{GATEWAY}, state="running"}})', "running"),
                limits=Limits(yellow=1, red=1, low_is_bad=True),
                runbooks=["PreceptorNoScorers"],
            ),
            number(
                "Scorers missing",
                "Scorers that are wanted and do not run.",
                "short",
                Query(
                    f'max(preceptor_scorers{{{GATEWAY}, state="target"}})'
                    f' - max(preceptor_scorers{{{GATEWAY}, state="running"}})',
                    "missing",
                ),
                limits=Limits(yellow=1, red=1),
                runbooks=["PreceptorReplicasUnhealthy"],
            ),
            number(
                "Micro-batches per second",
                "Forward passes of all scorers, over the chosen runs.",
                "suffix:/s",
                Query(f"sum(rate(preceptor_micro_batches_total{{{RUN}}}{RATE}))", "micro-batches"),
            ),
            number(
                "Gateways' places at scorers, taken",
                "Bytes at scorers over gateway.in_flight_bytes, of the fullest gateway. Near 1, micro-batches wait.",
                "percentunit",
                Query(
                    f"max(preceptor_micro_batch_bytes{{{GATEWAY}}} / preceptor_micro_batch_limit_bytes{{{GATEWAY}}})",
                    "taken",
                ),
                limits=Limits(yellow=0.8, red=0.95),
                runbooks=["PreceptorQueueSaturated"],
            ),
            number(
                "Replicas healthy",
                "Gateways and scorers that pass Serve's health check.",
                "short",
                Query(f"sum(ray_serve_deployment_replica_healthy{{{_SERVE}}})", "healthy"),
                limits=Limits(yellow=1, red=1, low_is_bad=True),
                runbooks=["PreceptorReplicasUnhealthy"],
            ),
            number(
                "Nodes alive",
                "Nodes of the Ray cluster.",
                "short",
                Query(f"sum(ray_cluster_active_nodes{{{JOB}}})", "nodes"),
                limits=Limits(yellow=1, red=1, low_is_bad=True),
            ),
        ],
    )


def _load() -> Row:
    return Row(
        "Are scorers what selection waits for?",
        [
            graph(
                "Scorers wanted and running",
                "Autoscaling moves what is wanted; nodes that do not come keep the two apart.",
                "short",
                Query(f"max by (state) (preceptor_scorers{{{GATEWAY}}})", "{{state}}"),
                runbooks=["PreceptorNoScorers", "PreceptorReplicasUnhealthy"],
            ),
            graph(
                "Micro-batches that wait at gateways",
                "For a place at a scorer, by gateway. Never empty for long: scorers are too few.",
                "short",
                Query(f"sum by (instance) (preceptor_micro_batches_waiting{{{GATEWAY}}})", "{{instance}}"),
                runbooks=["PreceptorQueueSaturated"],
            ),
            graph(
                "Busy scorers, by what they do",
                "Seconds per second over all scorers: forward passes, loading weights, and micro-batches in "
                "queues or on their way.",
                "short",
                Query(f"sum by (part) (rate(preceptor_scorer_seconds_total{{{RUN}}}{RATE}))", "{{part}}"),
                stacked=True,
                runbooks=["PreceptorQueueSaturated"],
            ),
            graph(
                "Micro-batches by run",
                "Scored per second.",
                "suffix:/s",
                Query(f"sum by (run) (rate(preceptor_micro_batches_total{{{RUN}}}{RATE}))", "{{run}}"),
                stacked=True,
            ),
            graph(
                "Bytes in gateways",
                "Super-batches received and not answered; of them micro-batches at scorers, and the bound on those.",
                "bytes",
                Query(f"sum(preceptor_in_flight_bytes{{{GATEWAY}}})", "super-batches"),
                Query(f"sum(preceptor_micro_batch_bytes{{{GATEWAY}}})", "micro-batches at scorers"),
                Query(f"sum(preceptor_micro_batch_limit_bytes{{{GATEWAY}}})", "bound on these", is_bound=True),
                runbooks=["PreceptorQueueSaturated"],
            ),
            graph(
                "Compute spent on scoring",
                "Floating-point operations per second, by run.",
                "flops",
                Query(f"sum by (run) (rate(preceptor_scoring_flops_total{{{RUN}}}{RATE}))", "{{run}}"),
                stacked=True,
            ),
        ],
    )


def _serve() -> Row:
    return Row(
        "How are Serve's replicas?",
        [
            graph(
                "Replicas that pass their health check",
                "By deployment.",
                "short",
                Query(f"sum by (deployment) (ray_serve_deployment_replica_healthy{{{_SERVE}}})", "{{deployment}}"),
                runbooks=["PreceptorReplicasUnhealthy"],
            ),
            graph(
                "Replicas started",
                "Within 15 minutes, by deployment. Without an upgrade or autoscaling: replicas die.",
                "short",
                Query(
                    f"sum by (deployment) (increase(ray_serve_deployment_replica_starts_total{{{_SERVE}}}[15m]))",
                    "{{deployment}}",
                ),
                runbooks=["PreceptorScorersLost"],
            ),
            graph(
                "Deployments that are updating",
                "1 while Serve replaces replicas of a deployment.",
                "short",
                Query(f"max by (deployment) (preceptor_deployment_updating{{{GATEWAY}}})", "{{deployment}}"),
                maximum=1,
                runbooks=["PreceptorUpgradeStuck"],
            ),
            graph(
                "Micro-batches at each scorer",
                "Waiting or computing in a replica now. One far above the others hangs.",
                "short",
                Query(
                    f'sum by (replica) (ray_serve_replica_processing_queries{{{_SERVE}, deployment="Scorer"}})',
                    "{{replica}}",
                ),
                runbooks=["PreceptorScorersLost"],
            ),
            graph(
                "Micro-batches that Serve holds back",
                "Every scorer has scorer.max_ongoing of them already.",
                "short",
                Query(f'sum(ray_serve_deployment_queued_queries{{{_SERVE}, deployment="Scorer"}})', "held back"),
                runbooks=["PreceptorQueueSaturated"],
            ),
            graph(
                "Places of each scorer in use, 10 min",
                "Share of its scorer.max_ongoing places that held a micro-batch, over ten minutes, by Serve's "
                "reckoning. Computing may be little of it: see what busy scorers do.",
                "percent",
                Query(
                    f'max by (replica) (ray_serve_replica_utilization_percent{{{_SERVE}, deployment="Scorer"}})',
                    "{{replica}}",
                ),
            ),
        ],
    )


def _nodes() -> Row:
    return Row(
        "How are Ray's nodes?",
        [
            graph(
                "CPUs",
                "Use of each node.",
                "percent",
                Query(f"max by (ip) (ray_node_cpu_utilization{{{JOB}}})", "{{ip}}"),
                maximum=100,
            ),
            graph(
                "GPUs",
                "Use of each GPU. Idle ones while micro-batches wait: gateway.in_flight_bytes is too small, or "
                "the network too slow.",
                "percent",
                Query(f"max by (ip, GpuIndex) (ray_node_gpus_utilization{{{JOB}}})", "{{ip}}, GPU {{GpuIndex}}"),
                maximum=100,
            ),
            graph(
                "Memory of GPUs",
                "In use on each GPU. scorer.model_bytes bounds the weights, not what a forward pass needs.",
                "mbytes",
                Query(f"max by (ip, GpuIndex) (ray_node_gram_used{{{JOB}}})", "{{ip}}, GPU {{GpuIndex}}"),
                runbooks=["PreceptorScorersLost"],
            ),
            graph(
                "Memory",
                "Share in use of each node, or of its container's limit. Ray kills workers above 95 %.",
                "percentunit",
                Query(
                    f"max by (ip) (ray_node_mem_used{{{JOB}}} / ray_node_mem_total{{{JOB}}})",
                    "{{ip}}",
                ),
                limits=Limits(yellow=0.85, red=0.95),
                maximum=1,
                runbooks=["PreceptorScorersLost"],
            ),
            graph(
                "Object store",
                "Bytes in use; micro-batches travel through it.",
                "bytes",
                Query(f"sum by (instance) (ray_object_store_used_memory{{{JOB}}})", "{{instance}}"),
            ),
            graph(
                "Disk",
                "Share in use of each node's disk for Ray's own files.",
                "percent",
                Query(f"max by (ip) (ray_node_disk_utilization_percentage{{{JOB}}})", "{{ip}}"),
                limits=Limits(yellow=85, red=95),
                maximum=100,
            ),
        ],
    )
