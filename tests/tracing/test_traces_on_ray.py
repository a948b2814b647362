"""The same trace when every scorer is a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from preceptor import SelectionClient
from preceptor_service.app import start_service
from tests.ray.candidates import ready_run, spec
from tests.service.conftest import config, target_of
from tests.tracing.collector import Collector
from tests.tracing.trainer import MANY_STEPS, train

pytestmark = [pytest.mark.ray, pytest.mark.long]


def test_a_trace_reaches_every_scorer_and_nothing_of_it_is_lost_when_the_service_stops(tmp_path: Path) -> None:
    with Collector() as collector:
        service = start_service(
            config(
                tmp_path / "store",
                name="traced",
                pool="ray",
                tracing={"endpoint": collector.endpoint},
                scorer={"replicas": 2, "num_cpus": 0.1, "micro_batch_rows": 32},
            )
        )
        try:
            with SelectionClient(target_of(service), timeout_s=60) as client:
                ready_run(client, spec("on-ray"))
            train(target_of(service), collector.endpoint, "on-ray", "many_steps")
        finally:
            service.stop()
        spans = collector.spans
    assert len({span.trace_id for span in spans}) == len(MANY_STEPS)
    processes = set()
    for offered in spans.named("preceptor.select"):
        (answered,) = spans.below(offered)
        micro_batches = spans.below(answered).named("preceptor.micro_batch")
        assert len(micro_batches) == 10  # 300 candidates, 32 at a time
        forwards = [spans.below(micro_batch).one("preceptor.forward") for micro_batch in micro_batches]
        assert not any(span.is_error for span in [offered, answered, *micro_batches, *forwards])
        processes |= {
            (forward.attributes["preceptor.replica"], forward.resource["service.instance.id"]) for forward in forwards
        }
        assert answered.resource["service.instance.id"] not in {process for _, process in processes}
    assert len(processes) == 2
