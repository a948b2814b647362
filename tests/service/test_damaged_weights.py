"""Weights that are damaged in the store, and a service that dies while it takes some: told, survived, mended."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from preceptor import Run, SelectionClient
from preceptor.errors import InternalError, UnavailableError
from preceptor_service.app import RunningService
from tests.service import digits
from tests.service.conftest import metrics_of, target_of
from tests.service.mortal_service import serving

SCORE = "hard_learner"


def _selects_with(run: Run, version: int, seed: int, step: int) -> None:
    batch = digits.candidates(step)
    selection = run.select(batch, sub_batch_size=6, step=step)
    assert selection.learner_version == version
    assert selection.indices.tolist() == digits.expected(
        run.spec, batch, digits.weights(seed), digits.weights(seed), count=6, step=step
    )


def _with_two_versions(service: RunningService, deadline_s: float | None = None) -> str:
    """Creates a run to which the weights of seeds 1 and 2 were pushed; returns its name."""
    with SelectionClient(target_of(service)) as client:
        run = client.create_run(digits.spec("damaged", score=SCORE, deadline_s=deadline_s))
        for version in (1, 2):
            run.push_weights(digits.weights(version), step=version)
        _selects_with(run, version=2, seed=2, step=3)
    return run.run_id


def _newest_manifest(store: Path, run_id: str) -> Path:
    return max((store / "runs" / run_id / "learner").iterdir())


def test_with_a_damaged_manifest_the_version_before_serves_until_newer_weights_are_pushed(
    start: Callable[..., RunningService], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = start()
    run_id = _with_two_versions(first)
    _newest_manifest(tmp_path / "store", run_id).write_bytes(b"")
    with SelectionClient(target_of(first)) as client:
        _selects_with(client.get_run(run_id), version=2, seed=2, step=4)  # what is loaded goes on
    first.stop()

    with SelectionClient(target_of(start())) as client, caplog.at_level(logging.WARNING):
        run = client.get_run(run_id)
        _selects_with(run, version=1, seed=1, step=5)
        assert "learner version 2 of run 'damaged' is damaged in the store" in caplog.text
        assert run.push_weights(digits.weights(3), step=5).version == 3
        _selects_with(run, version=3, seed=3, step=6)


def test_a_trainer_that_has_seen_a_version_is_never_given_the_one_before(
    start: Callable[..., RunningService], tmp_path: Path
) -> None:
    run_id = _with_two_versions(start(), deadline_s=2.0)
    _newest_manifest(tmp_path / "store", run_id).write_bytes(b"")

    with SelectionClient(target_of(start()), timeout_s=5.0) as client:
        run = client.get_run(run_id)
        run._stream.observe(2)  # as after a reconnection to this gateway
        with pytest.raises(UnavailableError, match="knows learner version 1 of run 'damaged', the trainer has seen 2"):
            run.select(digits.candidates(0), sub_batch_size=6, step=5)
        run.push_weights(digits.weights(3), step=5)
        _selects_with(run, version=3, seed=3, step=6)


def test_damaged_weights_are_named_counted_and_healed_by_pushing_them_again(
    start: Callable[..., RunningService], tmp_path: Path
) -> None:
    first = start()
    run_id = _with_two_versions(first)
    first.stop()
    digest = json.loads(_newest_manifest(tmp_path / "store", run_id).read_bytes())["digest"]
    blob = tmp_path / "store" / "blobs" / digest.removeprefix("sha256:")
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    service = start()
    with SelectionClient(target_of(service)) as client:
        run = client.get_run(run_id)
        with pytest.raises(InternalError, match=f"weights {digest} are damaged in the store"):
            run.select(digits.candidates(0), sub_batch_size=6, step=5)

        assert metrics_of(service).value("preceptor_failed_super_batches_total", run=run_id) == 1
        assert run.push_weights(digits.weights(2), step=2).version == 2
        _selects_with(run, version=2, seed=2, step=6)


@pytest.mark.slow
@pytest.mark.parametrize(("failpoint", "version"), [("manifest-synced:2", 1), ("manifest-named:2", 2)])
def test_a_service_that_dies_in_a_push_serves_the_old_version_or_all_of_the_new_one(
    tmp_path: Path, failpoint: str, version: int
) -> None:
    with serving(tmp_path, failpoint) as (target, process), SelectionClient(target, timeout_s=5.0) as client:
        run = client.create_run(digits.spec("dying", score=SCORE))
        run.push_weights(digits.weights(1), step=1)
        _selects_with(run, version=1, seed=1, step=2)
        with pytest.raises(UnavailableError):
            run.push_weights(digits.weights(2), step=2)
        assert process.wait(20) == -9

    with serving(tmp_path) as (target, _), SelectionClient(target) as client:
        run = client.get_run("dying")
        _selects_with(run, version=version, seed=version, step=3)
        assert run.push_weights(digits.weights(2), step=2).version == 2
        _selects_with(run, version=2, seed=2, step=4)
