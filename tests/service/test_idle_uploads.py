"""Uploads that are announced and never sent hold up nobody for longer than a deadline."""

from __future__ import annotations

from pathlib import Path

from preceptor import SelectionClient
from preceptor.errors import DeadlineExceededError
from preceptor.v1 import selection_pb2
from preceptor_service.app import start_service
from tests.service import digits
from tests.service.conftest import MAX_SUPER_BATCH_BYTES, config
from tests.service.raw import RawChannel


def test_scores_announced_and_never_sent_end_at_the_deadline_and_others_are_answered(tmp_path: Path) -> None:
    service = start_service(config(tmp_path, gateway={"deadline_s": 2}))
    target = f"127.0.0.1:{service.ports.grpc}"
    try:
        with SelectionClient(target) as client, RawChannel(target) as raw:
            run = client.create_run(digits.spec("idle-uploads", deadline_s=20))
            client.create_run(digits.spec("idle-uploads-of-others"))
            run.push_reference(digits.weights(2))
            run.push_weights(digits.weights(1), step=0)
            header = selection_pb2.ScoreHeader(
                run_id="idle-uploads-of-others", row_count=1, body_bytes=MAX_SUPER_BATCH_BYTES
            )
            idle = [raw.call("Score", selection_pb2.ScoreRequest(header=header)) for _ in range(2)]
            assert len(run.score(digits.candidates(1)).scores) == len(digits.candidates(1)["label"])
            for call in idle:
                status = call.status()
                assert (status.code, status.reason) == ("DEADLINE_EXCEEDED", DeadlineExceededError.reason)
                assert "were not received and scored within 2 s" in status.details
    finally:
        service.stop()
