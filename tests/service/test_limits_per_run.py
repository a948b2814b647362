"""One run cannot take every stream of a gateway."""

from __future__ import annotations

from pathlib import Path

from preceptor import SelectionClient
from preceptor.errors import OverloadedError
from preceptor_service.app import start_service
from tests.service import digits
from tests.service.conftest import config
from tests.service.raw import RawChannel, select_open


def test_a_run_at_its_limit_of_streams_is_refused_and_other_runs_are_not(tmp_path: Path) -> None:
    service = start_service(config(tmp_path, gateway={"max_streams_per_run": 2}))
    target = f"127.0.0.1:{service.ports.grpc}"
    try:
        with SelectionClient(target) as client, RawChannel(target) as raw:
            for run_id in ("greedy", "modest"):
                client.create_run(digits.spec(run_id))
            first, second = (raw.call("Select", select_open("greedy")) for _ in range(2))
            assert first.receive().HasField("opened")
            assert second.receive().HasField("opened")
            status = raw.call("Select", select_open("greedy")).status()
            assert (status.code, status.reason) == ("RESOURCE_EXHAUSTED", OverloadedError.reason)
            assert (
                "run 'greedy' has 2 Select streams open, as many as gateway.max_streams_per_run allows; try again later"
                in status.details
            )
            assert raw.call("Select", select_open("modest")).receive().HasField("opened")
            first.half_close()
            assert first.status().code == "OK"
            assert raw.call("Select", select_open("greedy")).receive().HasField("opened")
    finally:
        service.stop()
