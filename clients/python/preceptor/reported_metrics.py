"""Metrics that a trainer reports of its run, for reports and comparisons. Called by `client.py`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preceptor.channel import Connection
from preceptor.v1 import selection_pb2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MetricSeries:
    """One metric over steps.

    Attributes:
        steps: int64 `[N]`, ascending, all different.
        values: float64 `[N]`, finite.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


def report_metrics(
    connection: Connection, run_id: str, step: int, values: Mapping[str, float], timeout_s: float
) -> None:
    """Sends what was measured at `step`, again and again while the service is unavailable.

    Raises:
        PreceptorError: as `Run.report_metrics` says.
    """
    request = selection_pb2.ReportMetricsRequest(run_id=run_id, step=step, values=values)
    connection.repeated_unary(
        "ReportMetrics",
        lambda: request,
        selection_pb2.ReportMetricsResponse,
        timeout_s,
        f"metrics of step {step} for run {run_id!r} were not taken",
    )


def list_metrics(connection: Connection, run_id: str, timeout_s: float) -> dict[str, MetricSeries]:
    """Returns all that was reported of a run, by name; logs a warning where some of it is damaged in the store.

    Raises:
        PreceptorError: as `Run.metrics` says.
    """
    request = selection_pb2.ListMetricsRequest(run_id=run_id)
    response = connection.unary("ListMetrics", request, selection_pb2.ListMetricsResponse, timeout_s)
    if response.damaged_pieces:
        logger.warning("run %s: %d pieces of its reported metrics are damaged", run_id, response.damaged_pieces)
    return {
        series.name: MetricSeries(np.array(series.steps, np.int64), np.array(series.values, np.float64))
        for series in response.series
    }
