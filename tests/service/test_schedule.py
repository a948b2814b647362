"""Start, end, warm-up and uniform share of a run: what is drawn, what is scored, and what is no fallback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from preceptor import Run, SelectionClient
from preceptor.errors import WeightsMissingError
from tests.service import digits
from tests.service.conftest import Control, Metrics

LEARNER, REFERENCE = digits.weights(1), digits.weights(2)


@pytest.fixture(autouse=True)
def alive(control: Control) -> Iterator[None]:
    yield
    control.check()


def check(run: Run, step: int, count: int = 8) -> bool:
    """Whether `step` was scored; what was drawn is what the naive loop draws."""
    batch = digits.candidates(step)
    selection = run.select(batch, sub_batch_size=count, step=step)
    assert selection.indices.tolist() == digits.expected(run.spec, batch, LEARNER, REFERENCE, count, step)
    assert not selection.is_fallback
    is_scored = len(selection.scores) == 32
    assert (selection.learner_version is not None) == is_scored
    return is_scored


@pytest.mark.parametrize("selector", ["softmax", "top_k"])
def test_every_step_of_a_schedule_equals_the_naive_loop(client: SelectionClient, run_id: str, selector: str) -> None:
    run = client.create_run(
        digits.spec(
            run_id,
            selector=selector,
            select_from_step=2,
            warm_up_steps=4,
            select_until_step=9,
            uniform_share=0.25,
        )
    )
    run.push_reference(REFERENCE)
    run.push_weights(LEARNER, step=0)
    scored = [check(run, step) for step in range(11)]
    assert scored == [False, False, False, *[True] * 6, False, False]
    assert run.status().fallbacks == 0


def test_before_it_starts_no_weights_are_needed_and_nothing_is_scored(
    client: SelectionClient, run_id: str, metrics: Metrics
) -> None:
    run = client.create_run(digits.spec(run_id, select_from_step=3))
    selection = run.select(digits.candidates(0), sub_batch_size=5, step=2)
    assert selection.indices.tolist() == digits.as_uniform(run.spec, rows=32, count=5, step=2)
    assert (len(selection.scores), selection.learner_version, selection.is_fallback) == (0, None, False)
    assert selection.timings.losses_s == selection.timings.forward_s == 0
    assert metrics.value("preceptor_fallbacks_total", run=run_id) == 0
    assert metrics.value("preceptor_scoring_flops_total", run=run_id) == 0
    assert run.status().cost is None
    with pytest.raises(WeightsMissingError):
        run.select(digits.candidates(0), sub_batch_size=5, step=3)


def test_a_share_that_rounds_to_nothing_is_not_scored(client: SelectionClient, run_id: str) -> None:
    run = client.create_run(digits.spec(run_id, uniform_share=0.9))
    run.push_reference(REFERENCE)
    run.push_weights(LEARNER, step=0)
    assert [check(run, step, count) for step, count in ((0, 4), (1, 6))] == [False, True]


def test_score_gives_scores_whatever_the_schedule(client: SelectionClient, run_id: str) -> None:
    run = client.create_run(digits.spec(run_id, select_from_step=1000))
    run.push_reference(REFERENCE)
    run.push_weights(LEARNER, step=0)
    assert len(run.score(digits.candidates(0)).scores) == 32
