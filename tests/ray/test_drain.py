"""Stopping the service: what was accepted is answered, the rest is told to go elsewhere."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from preceptor import SelectionClient
from preceptor.errors import UnavailableError
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
    answered, refused = 0, 0
    try:
        with SelectionClient(f"127.0.0.1:{service.ports.grpc}", timeout_s=8) as client:
            run = ready_run(client, settings)
            answers = [run.submit(super_batch(step), COUNT, step=step) for step in range(200)]
            answers[5].result(30)
            stopper = threading.Thread(target=service.stop)
            stopper.start()
            for step, answer in enumerate(answers):
                try:
                    assert answer.result(40).indices.tolist() == expected(settings, step)
                    assert refused == 0, "an answer came after a refusal"
                    answered += 1
                except UnavailableError:
                    refused += 1
            stopper.join(60)
    finally:
        service.stop()
    assert answered >= 6
    assert not pids_titled("ray::ServeReplica:stopping:")
