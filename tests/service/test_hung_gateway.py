"""A gateway that hangs takes connections and says nothing: a trainer goes to another one, or on without."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from preceptor import Run, SelectionClient
from preceptor.errors import DeadlineExceededError, UnavailableError
from tests.reliability.served import Served, serve, wait_until
from tests.service import digits

COUNT = 8


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Served]]:
    store = tmp_path_factory.mktemp("store")
    with serve(1, pool="in-process", store=store) as here, serve(1, pool="in-process", store=store) as there:
        yield here, there


@contextmanager
def hung(gateway: Served) -> Iterator[None]:
    os.kill(gateway.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: not gateway.answers(), "it hangs", 20)  # on a busy machine threads stop one by one
        yield
    finally:
        os.kill(gateway.pid, signal.SIGCONT)


@pytest.fixture
def one_name(gateways: tuple[Served, Served], monkeypatch: pytest.MonkeyPatch) -> str:
    """A target that resolves to both gateways, in this order."""
    addresses = ",".join(gateway.target for gateway in gateways)
    insecure_channel = grpc.insecure_channel

    def resolved(target: str, options: Any) -> grpc.Channel:
        return insecure_channel(f"ipv4:{addresses}" if target == "gateways:7600" else target, options)

    monkeypatch.setattr(grpc, "insecure_channel", resolved)
    return "gateways:7600"


def ready(client: SelectionClient, run_id: str, **settings: Any) -> Run:
    run = client.create_run(digits.spec(run_id, **settings))
    run.push_reference(digits.weights(2))
    run.push_weights(digits.weights(1), step=0)
    return run


def select_rightly(run: Run, step: int, timeout_s: float | None = None) -> None:
    batch = digits.candidates(step)
    selection = run.select(batch, COUNT, step, timeout_s=timeout_s)
    assert not selection.is_fallback
    assert selection.indices.tolist() == digits.expected(
        run.spec, batch, digits.weights(1), digits.weights(2), count=COUNT, step=step
    )


@pytest.mark.slow
def test_another_gateway_of_the_name_answers_within_the_default_time_out(
    gateways: tuple[Served, Served], one_name: str
) -> None:
    with SelectionClient(one_name) as client, SelectionClient(gateways[1].target) as elsewhere:
        run = ready(client, "moved")
        select_rightly(run, 1)
        select_rightly(elsewhere.get_run("moved"), 1)  # what it does for the first time takes its time
        with hung(gateways[0]):
            for step in range(2, 5):
                select_rightly(run, step)


@pytest.mark.slow
def test_a_trainer_that_starts_meanwhile_meets_the_other_gateway(
    gateways: tuple[Served, Served], one_name: str
) -> None:
    with hung(gateways[0]), SelectionClient(one_name) as client:
        select_rightly(ready(client, "late"), 1)


@pytest.mark.slow
def test_the_only_gateway_is_given_up_at_the_deadline_and_asked_again_once_it_lives(
    gateways: tuple[Served, Served],
) -> None:
    gateway = gateways[1]
    with SelectionClient(gateway.target) as client:
        failing = ready(client, "raising", deadline_s=0.5)
        going_on = ready(client, "going-on", deadline_s=0.5, on_deadline="uniform")
        select_rightly(failing, 1)
        with hung(gateway):
            with pytest.raises((DeadlineExceededError, UnavailableError)):
                failing.select(digits.candidates(2), COUNT, 2, timeout_s=0.5)
            for step in (2, 3):
                drawn = going_on.select(digits.candidates(step), COUNT, step)
                assert drawn.is_fallback
                assert drawn.indices.tolist() == digits.as_uniform(going_on.spec, 32, COUNT, step)
            with (
                SelectionClient(gateway.target, timeout_s=1.0) as impatient,
                pytest.raises((DeadlineExceededError, UnavailableError)),
            ):
                impatient.create_run(digits.spec("nobody-there"))
        select_rightly(failing, 2)
        select_rightly(failing, 3)
