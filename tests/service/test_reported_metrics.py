"""What a trainer reports is there after it was answered: through restarts, repeats, and several gateways."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from preceptor import Run, SelectionClient
from preceptor.errors import InvalidMetricsError, ResourceExhaustedError, RunNotFoundError, UnavailableError
from preceptor.v1 import selection_pb2
from preceptor_service import reported_metrics
from preceptor_service.app import RunningService
from preceptor_service.gateway import reporting
from preceptor_service.gateway.reporting import MAX_AT_ONCE
from preceptor_service.reported_metrics import MAX_NAMES, ReportedMetrics
from preceptor_service.run_store import RunRecord
from tests.service import digits
from tests.service.conftest import Control, Store, target_of
from tests.service.raw import METHODS, RawChannel


@pytest.fixture(autouse=True)
def alive(control: Control) -> Iterator[None]:
    yield
    control.check()


def reported(run: Run) -> dict[str, dict[int, float]]:
    return {
        name: dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))
        for name, series in run.metrics().items()
    }


def test_what_was_reported_comes_back_by_name_and_step(empty_run: Run) -> None:
    assert empty_run.metrics() == {}
    numbers: Any = (np.float32(0.5), np.int64(10))
    empty_run.report_metrics(20, {"test_accuracy": numbers[0], "val/loss": 1 / 3})
    empty_run.report_metrics(numbers[1], {"test_accuracy": 0.25})
    found = empty_run.metrics()
    assert list(found) == ["test_accuracy", "val/loss"]
    assert (found["val/loss"].steps.dtype.name, found["val/loss"].values.dtype.name) == ("int64", "float64")
    assert reported(empty_run) == {"test_accuracy": {10: 0.25, 20: 0.5}, "val/loss": {20: 1 / 3}}


def test_repeating_is_harmless_and_what_is_reported_last_counts(empty_run: Run) -> None:
    for value in (0.9, 0.1, 0.1):  # a trainer that went back to a checkpoint
        empty_run.report_metrics(7, {"acc": value})
    assert reported(empty_run) == {"acc": {7: 0.1}}


def test_metrics_outlive_a_restart_and_another_gateway_adds_to_them(
    start: Callable[..., RunningService], tmp_path: Path
) -> None:
    first = start()
    with SelectionClient(target_of(first)) as client:
        run = client.create_run(digits.spec("lasting"))
        run.report_metrics(1, {"acc": 0.1})
        other = start()
        with SelectionClient(target_of(other)) as elsewhere:
            elsewhere.get_run("lasting").report_metrics(2, {"acc": 0.2})
        run.report_metrics(3, {"acc": 0.3})
        other.stop()
    first.stop()
    with SelectionClient(target_of(start())) as client:
        assert reported(client.get_run("lasting")) == {"acc": {1: 0.1, 2: 0.2, 3: 0.3}}
    assert len(list((tmp_path / "store" / "runs" / "lasting" / "reported").iterdir())) == 1


def test_they_go_with_their_run(client: SelectionClient, empty_run: Run) -> None:
    empty_run.report_metrics(1, {"acc": 0.1})
    client.delete_run(empty_run.run_id)
    for call in (empty_run.metrics, lambda: empty_run.report_metrics(2, {"acc": 0.2})):
        with pytest.raises(RunNotFoundError):
            call()
    assert client.create_run(empty_run.spec).metrics() == {}


@pytest.mark.parametrize(
    ("step", "values", "said"),
    [
        (-1, {"acc": 1.0}, "step is -1; it starts at 0"),
        (1, {}, "0 metrics were reported at once; give 1 to 64"),
        (1, {f"m{number}": 1.0 for number in range(65)}, "65 metrics were reported at once"),
        (1, {"acc": math.nan}, "metric 'acc' is nan at step 1; report finite numbers"),
        (1, {"acc": -math.inf}, "metric 'acc' is -inf at step 1"),
        (1, {"": 1.0}, "a metric is named ''; names match"),
        (1, {"1st": 1.0}, "a metric is named '1st'"),
        (1, {"<script>": 1.0}, "a metric is named '<script>'"),
        (1, {"acc\n": 1.0}, r"a metric is named 'acc\\n'"),
        (1, {"a" * 65: 1.0}, "a metric is named 'aaaa"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_is_out_of_range_is_refused_and_nothing_of_it_is_kept(
    empty_run: Run, step: int, values: dict[str, float], said: str
) -> None:
    with pytest.raises(InvalidMetricsError, match=said):
        empty_run.report_metrics(step, values)
    assert empty_run.metrics() == {}


def test_what_is_no_number_is_the_callers_mistake(empty_run: Run) -> None:
    with pytest.raises((TypeError, ValueError)):
        empty_run.report_metrics(1, {"acc": "high"})  # type: ignore[dict-item]


def test_a_run_has_bounded_names_and_values_and_may_go_on_with_those_it_has(
    empty_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reported_metrics, "MAX_POINTS", 200)
    names = [f"m{number}" for number in range(MAX_NAMES)]
    empty_run.report_metrics(0, dict.fromkeys(names, 0.0))
    with pytest.raises(ResourceExhaustedError, match="65 names of reported metrics, the limit is 64; report fewer"):
        empty_run.report_metrics(1, {"one_more": 1.0})
    for step in (1, 2):
        empty_run.report_metrics(step, dict.fromkeys(names, step / 7))
    with pytest.raises(ResourceExhaustedError, match="256 values of reported metrics, the limit is 200"):
        empty_run.report_metrics(3, dict.fromkeys(names, 1.0))
    empty_run.report_metrics(2, dict.fromkeys(names, 0.5))
    assert reported(empty_run)["m7"] == {0: 0.0, 1: 1 / 7, 2: 0.5}


def test_an_unknown_run_is_not_found_and_bytes_that_are_no_message_are_refused(raw: RawChannel, target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        for name, content in (("ListMetrics", b"\xff"), ("ReportMetrics", b"\xff")):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(METHODS[name].path)(content, timeout=10)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        request = selection_pb2.ListMetricsRequest(run_id="../../etc").SerializeToString()
        with pytest.raises(grpc.RpcError) as missing:
            channel.unary_unary(METHODS["ListMetrics"].path)(request, timeout=10)
        assert missing.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_damaged_piece_is_told_and_the_rest_goes_on(
    empty_run: Run, service_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    empty_run.report_metrics(1, {"acc": 0.1})
    folder = service_store.path / "runs" / empty_run.run_id / "reported"
    (piece,) = folder.iterdir()
    piece.write_bytes(piece.read_bytes()[:-1])
    empty_run.report_metrics(2, {"acc": 0.2})
    assert reported(empty_run) == {"acc": {2: 0.2}}
    assert len(list(folder.iterdir())) == 2
    assert f"run {empty_run.run_id}: 1 pieces of its reported metrics are damaged" in caplog.messages


def test_a_store_that_hangs_holds_up_nobody_for_long_and_no_other_run(
    start: Callable[..., RunningService], monkeypatch: pytest.MonkeyPatch
) -> None:
    report, goes_on, inside = ReportedMetrics.report, threading.Event(), Counter[str]()

    def hanging(self: ReportedMetrics, record: RunRecord, step: int, values: Mapping[str, float]) -> None:
        inside[record.spec.run_id] += 1
        assert record.spec.run_id == "free" or goes_on.wait(60)
        report(self, record, step, values)

    monkeypatch.setattr(reporting, "PATIENCE_S", 0.5)
    monkeypatch.setattr(ReportedMetrics, "report", hanging)
    service = start()
    with SelectionClient(target_of(service)) as client, RawChannel(target_of(service)) as raw:
        names = [f"held-{number}" for number in range(MAX_AT_ONCE)]
        runs = {name: client.create_run(digits.spec(name)) for name in (*names, "free")}

        def refused(name: str) -> str:
            request = selection_pb2.ReportMetricsRequest(run_id=name, step=1, values={"acc": 0.5})
            status = raw.call("ReportMetrics", request).status()
            assert (status.code, status.reason) == ("UNAVAILABLE", "UNAVAILABLE")
            return status.details

        try:
            assert "'held-0' took longer than 0.5 s: the store did not answer; try again" in refused("held-0")
            assert "'held-0' took longer than 0.5 s: it was not their turn; try again" in refused("held-0")
            runs["free"].report_metrics(1, {"acc": 0.5})
            assert reported(runs["free"]) == {"acc": {1: 0.5}}
            for name in names[1:]:
                refused(name)
            assert "'free' took longer than 0.5 s: it was not their turn" in refused("free")
            assert inside == {**dict.fromkeys(names, 1), "free": 1}
        finally:
            goes_on.set()
        for run in runs.values():
            run.report_metrics(2, {"acc": 0.75})
            assert reported(run) == {"acc": {1: 0.5, 2: 0.75}}


def test_where_no_gateway_answers_it_gives_up_in_time(start: Callable[..., RunningService]) -> None:
    service = start()
    with SelectionClient(target_of(service)) as client:
        run = client.create_run(digits.spec("cut-off"))
        service.stop()
        with pytest.raises(UnavailableError, match="metrics of step 1 for run 'cut-off' were not taken by"):
            run.report_metrics(1, {"acc": 0.1}, timeout_s=0.5)
