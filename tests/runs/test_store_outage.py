"""An object store that is away: what needs it fails, the rest goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from preceptor import SelectionClient
from preceptor.errors import PreceptorError
from preceptor_service.runs import _REFRESH_S
from tests.ray.candidates import COUNT, expected, ready_run, spec, state, super_batch
from tests.ray.conftest import start
from tests.stores import ObjectPlace


@pytest.fixture
def client(object_store: ObjectPlace) -> Iterator[SelectionClient]:
    """A client of a gateway whose store is an object store."""
    service = start("in-process", object_store.settings)
    try:
        with SelectionClient(f"127.0.0.1:{service.ports.grpc}") as client:
            yield client
    finally:
        service.stop()


def test_selection_goes_on_and_pushes_work_again_afterwards(
    object_store: ObjectPlace, client: SelectionClient, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.s3_server import Answer

    settings = spec("steady")
    run = ready_run(client, settings)
    object_store.server.spoil = lambda environ: Answer("403 Forbidden", "AccessDenied")
    began, step = time.monotonic(), 0
    while time.monotonic() < began + 3 * _REFRESH_S:
        step += 1
        assert run.select(super_batch(step), COUNT, step=step).indices.tolist() == expected(settings, step)
    assert "run steady goes on with what is known of it" in caplog.text
    with pytest.raises(PreceptorError, match="the object store"):
        run.push_weights(state("learner-2"), step=step, timeout_s=2)

    object_store.server.spoil = lambda environ: None
    assert run.push_weights(state("learner-2"), step=step).version == 2
