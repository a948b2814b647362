"""A scorer that dies costs a rescored micro-batch, not an answer."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from preceptor import Run, RunSpec, SelectionClient
from preceptor.errors import InternalError
from preceptor_service.app import RunningService
from tests.processes import pids_titled
from tests.ray.breaking import broken
from tests.ray.candidates import COUNT, SETTINGS, expected, ready_run, spec, state, super_batch
from tests.service.mortal_service import began_at

pytestmark = pytest.mark.ray

SCORERS = "ray::ServeReplica:mortal:Scorer"


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 90) -> None:
    """Waits for `condition`, looking ten times a second."""
    pause = threading.Event()
    for _ in range(int(timeout_s * 10)):
        if condition():
            return
        pause.wait(0.1)
    pytest.fail(f"{what} did not happen within {timeout_s} s")


def wait_until_two_serve(run: Run, learner: str) -> None:
    """Pushes until two scorers have loaded it: one that starts is a process before it serves."""
    steps = iter(range(1, 10_000))
    wait_until(lambda: run.push_weights(state(learner), step=next(steps)).replicas_loaded == 2, "a push to two scorers")


def test_a_scorer_killed_in_the_middle_changes_no_answer_and_raises_nothing(
    two_replicas: RunningService, tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    model = {"model": "dawdler", "model_config": {**SETTINGS, "hold": str(hold), "held": "scores"}}
    settings = spec("killed", **model)
    with SelectionClient(f"127.0.0.1:{two_replicas.ports.grpc}", timeout_s=120) as client:
        run = ready_run(client, settings)
        wait_until(lambda: len(pids_titled(SCORERS)) == 2, "two scorers")
        answers = [run.submit(super_batch(step), COUNT, step=step) for step in range(60)]
        answers[3].result(150)
        hold.touch()
        answers += [run.submit(super_batch(step), COUNT, step=step) for step in range(60, 64)]
        wait_until(lambda: began_at(hold).exists() and began_at(hold).read_text() != "", "a scorer is in the middle")
        os.kill(int(began_at(hold).read_text()), signal.SIGKILL)
        hold.unlink()
        selections = [answer.result(150) for answer in answers]
        for step, selection in enumerate(selections):
            assert selection.indices.tolist() == expected(settings, step)
            assert not selection.is_fallback
        assert sum(selection.timings.rescored_micro_batches for selection in selections) >= 1


def test_a_scorer_that_hangs_costs_no_answer_and_what_it_says_later_changes_none(two_replicas: RunningService) -> None:
    settings = spec("hung", deadline_s=15)
    with SelectionClient(f"127.0.0.1:{two_replicas.ports.grpc}", timeout_s=120) as client:
        run = ready_run(client, settings)
        wait_until_two_serve(run, "learner-1")  # one that still starts would be no help
        hung = min(pids_titled(SCORERS))
        os.kill(hung, signal.SIGSTOP)
        try:
            selections = [run.select(super_batch(step), COUNT, step=step) for step in range(24)]
        finally:
            with suppress(ProcessLookupError):  # Serve has replaced it by then
                os.kill(hung, signal.SIGCONT)
        selections += [run.select(super_batch(step), COUNT, step=step) for step in range(24, 29)]
        for step, selection in enumerate(selections):
            assert selection.indices.tolist() == expected(settings, step)
            assert not selection.is_fallback
        assert sum(selection.timings.rescored_micro_batches for selection in selections) >= 1


def breaking_run(
    client: SelectionClient, run_id: str, what: str, file: Path, **settings: object
) -> tuple[RunSpec, Run]:
    """A run whose scorers break once `file` is there, with both of them serving."""
    model = {"model": "breaking", "model_config": {**SETTINGS, "file": str(file), "what": what}}
    described = spec(run_id, **{"deadline_s": 30, **model, **settings})
    run = ready_run(client, described)
    wait_until_two_serve(run, "learner-1")
    return described, run


def test_a_scorer_whose_device_breaks_costs_no_answer_and_is_replaced(
    two_replicas: RunningService, tmp_path: Path
) -> None:
    file = tmp_path / "broken"
    with SelectionClient(f"127.0.0.1:{two_replicas.ports.grpc}", timeout_s=120) as client:
        settings, run = breaking_run(client, "device", "device", file, on_deadline="uniform")
        file.touch()
        selections = [run.select(super_batch(step), COUNT, step=step) for step in range(12)]
        lost = broken(file)
        assert lost != os.getpid()
        wait_until(lambda: lost not in pids_titled(SCORERS), "the end of the scorer without a device")
        wait_until(lambda: len(pids_titled(SCORERS)) == 2, "another scorer")
        selections += [run.select(super_batch(step), COUNT, step=step) for step in range(12, 18)]
        for step, selection in enumerate(selections):
            assert not selection.is_fallback
            assert selection.indices.tolist() == expected(settings, step)
        assert sum(selection.timings.rescored_micro_batches for selection in selections) >= 1


def test_a_scorer_that_cannot_read_its_storage_costs_no_answer(two_replicas: RunningService, tmp_path: Path) -> None:
    file = tmp_path / "broken"
    with SelectionClient(f"127.0.0.1:{two_replicas.ports.grpc}", timeout_s=120) as client:
        settings, run = breaking_run(client, "storage", "storage", file)
        file.touch()
        selections = [run.select(super_batch(step), COUNT, step=step) for step in range(12)]
        assert broken(file) in pids_titled(SCORERS), "only a device is a reason for another scorer"
        for step, selection in enumerate(selections):
            assert selection.indices.tolist() == expected(settings, step)
        assert sum(selection.timings.rescored_micro_batches for selection in selections) >= 1


def test_a_model_that_fails_on_every_scorer_is_an_internal_error_and_no_scorer_is_replaced(
    two_replicas: RunningService, tmp_path: Path
) -> None:
    file = tmp_path / "broken"
    with SelectionClient(f"127.0.0.1:{two_replicas.ports.grpc}", timeout_s=120) as client:
        settings, run = breaking_run(client, "code", "code", file)
        scorers = pids_titled(SCORERS)
        file.touch()
        for step in range(3):  # longer than three of Serve's health checks take
            with pytest.raises(InternalError, match="its log says why") as raised:
                run.select(super_batch(step), COUNT, step=step)
            assert "secret" not in str(raised.value)
        assert pids_titled(SCORERS) == scorers
        file.unlink()
        assert run.select(super_batch(3), COUNT, step=3).indices.tolist() == expected(settings, 3)


def test_a_restarted_scorer_is_asked_to_load_the_next_push(two_replicas: RunningService) -> None:
    settings = spec("restarted")
    with SelectionClient(f"127.0.0.1:{two_replicas.ports.grpc}", timeout_s=120) as client:
        run = ready_run(client, settings)
        wait_until(lambda: len(pids_titled(SCORERS)) == 2, "two scorers")
        os.kill(max(pids_titled(SCORERS)), signal.SIGKILL)
        wait_until_two_serve(run, "learner-2")
        selection = run.select(super_batch(5), COUNT, step=20_000)
        assert selection.indices.tolist() == expected(settings, 20_000, learner="learner-2", super_batch_of=5)


def test_every_answer_names_one_version_that_never_goes_back_under_continuous_pushes(
    two_replicas: RunningService,
) -> None:
    settings = spec("pushed")
    stop = threading.Event()
    pushed: list[int] = []
    with SelectionClient(f"127.0.0.1:{two_replicas.ports.grpc}", timeout_s=120) as client:
        run = ready_run(client, settings)

        def push() -> None:
            while not stop.is_set():
                version = len(pushed) + 2
                pushed.append(run.push_weights(state(f"learner-{version}"), step=version).version)

        pusher = threading.Thread(target=push)
        pusher.start()
        try:
            answers = [run.submit(super_batch(step), COUNT, step=step) for step in range(120)]
            selections = [answer.result(150) for answer in answers]
        finally:
            stop.set()
            pusher.join(60)
        versions = [selection.learner_version for selection in selections]
        assert versions == sorted(versions, key=lambda version: version or 0)
        assert len(set(versions)) > 1
        for step, selection in enumerate(selections):
            learner = f"learner-{selection.learner_version}"
            assert selection.indices.tolist() == expected(settings, step, learner=learner)
            assert selection.learner_step == (selection.learner_version if selection.learner_version != 1 else 0)
