"""Stopping the service: what was accepted is answered, the rest is told to go elsewhere."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from preceptor import SelectionClient
from preceptor.errors import ClosedError
from preceptor_service.ray_cluster import RayCluster
from tests.processes import pids_titled
from tests.ray.candidates import COUNT, expected, ready_run, spec, super_batch
from tests.ray.conftest import start

pytestmark = pytest.mark.ray


def test_a_service_that_stops_answers_what_it_accepted_and_ends_its_replicas(
    ray_cluster: RayCluster, tmp_path: Path
) -> None:
    service = start("one-replica", tmp_path, name="stopping")
    settings = spec("stopped")
    try:
        with SelectionClient(f"127.0.0.1:{service.ports.grpc}", timeout_s=240) as client:
            run = ready_run(client, settings)
            answers = [run.submit(super_batch(step), COUNT, step=step) for step in range(200)]
            answers[5].result(60)
            stopper = threading.Thread(target=service.stop)
            stopper.start()
            stopper.join(120)
            assert not stopper.is_alive()
    finally:
        service.stop()
    failures = [answer.exception(0) for answer in answers]
    answered = failures.count(None)
    assert failures[:answered] == [None] * answered, "an answer came after a refusal"
    assert all(isinstance(failure, ClosedError) for failure in failures[answered:])
    for step in range(answered):
        assert answers[step].result(0).indices.tolist() == expected(settings, step)
    assert answered >= 6
    assert not pids_titled("ray::ServeReplica:stopping:")
