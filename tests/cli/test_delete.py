"""`preceptor delete`: asks first, and says what is gone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from preceptor import SelectionClient
from preceptor.errors import RunNotFoundError
from tests.cli.conftest import TIMEOUT_S, Ran, Serving, environment
from tests.service import digits

Run = Callable[..., Ran]


@pytest.fixture
def run_id(service: Serving) -> str:
    """A run that was used."""
    with SelectionClient(f"127.0.0.1:{service.port()}") as client:
        run = client.create_run(digits.spec("ended", score="hard_learner"))
        run.push_weights(digits.weights(1), step=0)
        run.select(digits.candidates(1), sub_batch_size=4, step=1)
    return run.run_id


def exists(service: Serving, run_id: str) -> bool:
    with SelectionClient(f"127.0.0.1:{service.port()}") as client:
        try:
            client.get_run(run_id)
        except RunNotFoundError:
            return False
        return True


def answering(repository: Path, service: Serving, run_id: str, answer: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "preceptor_service", "delete", run_id],
        input=answer,
        env=environment(repository, PRECEPTOR_TARGET=f"127.0.0.1:{service.port()}"),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def test_a_run_is_deleted_once_that_is_confirmed(repository: Path, service: Serving, run_id: str) -> None:
    for answer in ("", "n\n"):
        kept = answering(repository, service, run_id, answer)
        assert (kept.returncode, kept.stdout.strip()) == (1, "")
        assert kept.stderr.endswith("preceptor: nothing was deleted; give --yes where nobody can answer\n")
        assert exists(service, run_id)
    gone = answering(repository, service, run_id, "y\n")
    assert gone.returncode == 0
    assert gone.stderr.startswith(f"run {run_id} was created 20")
    assert ", last answered 20" in gone.stderr
    assert f"; delete it from 127.0.0.1:{service.port()}? [y/N]:" in gone.stderr
    assert gone.stdout.strip() == f"deleted run {run_id}, its weights and its ledger"
    assert not exists(service, run_id)


def test_nobody_is_asked_where_that_is_said(preceptor: Run, service: Serving, run_id: str) -> None:
    target = f"127.0.0.1:{service.port()}"
    ran = preceptor("delete", run_id, "--yes", "--target", target)
    assert (ran.code, ran.out, ran.err) == (0, f"deleted run {run_id}, its weights and its ledger\n", "")
    again = preceptor("delete", run_id, "--yes", "--target", target)
    assert (again.code, again.out, again.err) == (1, "", f"preceptor: there is no run '{run_id}'\n")


def test_a_run_with_a_damaged_record_is_deleted_all_the_same(
    preceptor: Run, serve: Callable[..., Serving], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    target = f"127.0.0.1:{serve(store).port()}"
    with SelectionClient(target) as client:
        client.create_run(digits.spec("damaged"))
    (record,) = (store / "runs").rglob("run.json")
    record.write_text("{")
    ran = preceptor("delete", "damaged", "--yes", "--target", target)
    assert (ran.code, ran.err) == (0, "")
    assert not record.exists()
