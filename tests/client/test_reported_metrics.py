"""Metrics on their way to the service: sent again while it is unavailable, given up in time, refused at once."""

from __future__ import annotations

import pytest

from preceptor import RunSpec, SelectionClient
from preceptor.errors import InvalidMetricsError, ResourceExhaustedError, UnavailableError
from tests.client.fake_service import Abort, FakeService

SPEC = RunSpec("run", model="small_cnn")


def test_they_are_sent_again_while_the_service_is_unavailable(service: FakeService) -> None:
    service.first_aborts["ReportMetrics"] = [Abort("UNAVAILABLE")] * 3
    with SelectionClient(service.target) as client:
        run = client.create_run(SPEC)
        run.report_metrics(5, {"acc": 0.5, "loss": 2.0})
        found = run.metrics()
    assert service.first_aborts["ReportMetrics"] == []
    assert {name: (series.steps.tolist(), series.values.tolist()) for name, series in found.items()} == {
        "acc": ([5], [0.5]),
        "loss": ([5], [2.0]),
    }


def test_they_are_given_up_in_time_with_the_last_reason(service: FakeService) -> None:
    service.aborts["ReportMetrics"] = Abort("UNAVAILABLE", details="not now")
    with SelectionClient(service.target) as client:
        run = client.create_run(SPEC)
        with pytest.raises(UnavailableError, match=r"metrics of step 7 for run 'run' were not taken .*; last: .*now"):
            run.report_metrics(7, {"acc": 0.5}, timeout_s=0.3)


@pytest.mark.parametrize(
    ("abort", "error"),
    [
        (Abort("INVALID_ARGUMENT", "METRICS_INVALID"), InvalidMetricsError),
        (Abort("RESOURCE_EXHAUSTED"), ResourceExhaustedError),
    ],
)
def test_what_the_service_refuses_is_not_sent_again(service: FakeService, abort: Abort, error: type[Exception]) -> None:
    service.first_aborts["ReportMetrics"] = [abort]
    with SelectionClient(service.target) as client:
        run = client.create_run(SPEC)
        with pytest.raises(error):
            run.report_metrics(1, {"acc": 0.5})
    assert service.reported == {}


def test_a_step_that_does_not_fit_the_contract_is_the_callers_mistake(service: FakeService) -> None:
    with SelectionClient(service.target) as client:
        run = client.create_run(SPEC)
        with pytest.raises(ValueError, match="must fit in 64 bits"):
            run.report_metrics(2**63, {"acc": 0.5})
