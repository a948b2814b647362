"""The service selects, byte for byte, what a naive loop selects, however it is laid out."""

from __future__ import annotations

import pytest

from preceptor import SelectionClient
from preceptor_service.app import RunningService
from preceptor_service.method_registry import SCORE_RULES, SELECTORS
from tests.ray.candidates import COUNT, ROWS, expected, ready_run, spec, super_batch
from tests.tcp_proxy import TcpProxy

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("selector", sorted(SELECTORS))
@pytest.mark.parametrize("score", sorted(SCORE_RULES))
def test_every_score_with_every_selector_equals_the_naive_loop(
    service: RunningService, score: str, selector: str
) -> None:
    settings = spec(f"equal-{score}-{selector}".replace("_", "-"), score=score, selector=selector, temperature=0.7)
    with SelectionClient(f"127.0.0.1:{service.ports.grpc}", timeout_s=120) as client:
        run = ready_run(client, settings)
        for step, rank in ((1, 0), (2, 0), (2, 3)):
            selection = run.select(super_batch(step), COUNT, step=step, rank=rank)
            assert selection.indices.tolist() == expected(settings, step, rank=rank)
            assert not selection.is_fallback


def test_every_step_of_a_schedule_equals_the_naive_loop(service: RunningService) -> None:
    settings = spec("scheduled", select_from_step=1, warm_up_steps=2, select_until_step=5, uniform_share=0.25)
    with SelectionClient(f"127.0.0.1:{service.ports.grpc}", timeout_s=120) as client:
        run = ready_run(client, settings)
        for step in range(6):
            selection = run.select(super_batch(step), COUNT, step=step)
            assert selection.indices.tolist() == expected(settings, step)
            assert len(selection.scores) == (ROWS if 1 < step < 5 else 0)


def test_super_batches_in_flight_together_are_answered_as_if_alone(service: RunningService) -> None:
    settings = spec("together")
    with SelectionClient(f"127.0.0.1:{service.ports.grpc}", timeout_s=120) as client:
        run = ready_run(client, settings)
        answers = [run.submit(super_batch(step), COUNT, step=step) for step in range(12)]
        for step, answer in enumerate(answers):
            assert answer.result(150).indices.tolist() == expected(settings, step)


def test_a_connection_cut_in_the_middle_changes_no_answer(service: RunningService) -> None:
    settings = spec("cut")
    with TcpProxy(service.ports.grpc) as network, SelectionClient(f"127.0.0.1:{network.port}", timeout_s=120) as client:
        run = ready_run(client, settings)
        for first in range(0, 30, 10):
            answers = [run.submit(super_batch(step), COUNT, step=step) for step in range(first, first + 10)]
            answers[0].result(150)
            network.cut()
            for step, answer in enumerate(answers, first):
                assert answer.result(150).indices.tolist() == expected(settings, step)
        assert network.connections > 3
