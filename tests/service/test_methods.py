"""Selectors with importance weights, and rules and selectors of the operator's own, through the whole service."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from preceptor import Run, SelectionClient
from preceptor.errors import InternalError
from tests.naive.losses import small_cnn_gradient_norms
from tests.naive.selection import importance_weights
from tests.naive.selection import select as naive_select
from tests.service import digits
from tests.service.conftest import Control

LEARNER, REFERENCE = digits.weights(1), digits.weights(2)


@pytest.fixture(autouse=True)
def alive(control: Control) -> Iterator[None]:
    yield
    control.check()


def ready_run(client: SelectionClient, run_id: str, **settings: object) -> Run:
    run = client.create_run(digits.spec(run_id, **settings))
    run.push_reference(REFERENCE)
    run.push_weights(LEARNER, step=0)
    return run


@pytest.mark.parametrize("score", ["hard_learner", "learnability"])
@pytest.mark.parametrize("settings", [{}, {"uniform_share": 0.5}, {"priority_exponent": 0.6}], ids=str)
def test_proportional_answers_indices_and_importance_weights_of_the_naive_loop(
    client: SelectionClient, run_id: str, score: str, settings: dict[str, float]
) -> None:
    run = ready_run(client, run_id, score=score, selector="proportional", importance_exponent=0.4, **settings)
    for step in range(5):
        batch = digits.candidates(step)
        selection = run.select(batch, sub_batch_size=8, step=step)
        assert selection.indices.tolist() == digits.expected(run.spec, batch, LEARNER, REFERENCE, 8, step)
        assert selection.weights is not None
        assert selection.weights.dtype == np.float32
        naive = importance_weights(
            run.spec,
            selection.indices.tolist(),
            learner_losses=digits.losses(LEARNER, batch),
            reference_losses=digits.losses(REFERENCE, batch),
            step=step,
        )
        assert selection.weights.tolist() == pytest.approx(naive, rel=1e-3)


def test_what_is_drawn_uniformly_weighs_the_same(client: SelectionClient, run_id: str) -> None:
    run = client.create_run(digits.spec(run_id, selector="proportional", select_from_step=1))
    selection = run.select(digits.candidates(0), sub_batch_size=3, step=0)
    assert selection.weights is not None
    assert selection.weights.tolist() == [1, 1, 1]


def test_gradient_norms_are_those_of_automatic_differentiation(client: SelectionClient, run_id: str) -> None:
    run = client.create_run(digits.spec(run_id, score="gradient_norm", selector="proportional"))
    run.push_weights(LEARNER, step=0)
    batch = digits.candidates(0)
    norms = small_cnn_gradient_norms(LEARNER, batch["image"], batch["label"])
    scores = run.score(batch)
    assert scores.learner_gradient_norms is not None
    assert (scores.learner_losses, scores.reference_losses) == (None, None)
    assert scores.learner_gradient_norms.tolist() == scores.scores.tolist() == pytest.approx(norms, abs=1e-5)
    selection = run.select(batch, sub_batch_size=8, step=0)
    nothing = digits.losses(LEARNER, batch)
    assert selection.indices.tolist() == naive_select(
        run.spec, learner_losses=nothing, reference_losses=nothing, count=8, step=0, gradient_norms=norms
    )


def test_own_rules_may_need_losses_and_gradient_norms(client: SelectionClient, run_id: str) -> None:
    run = client.create_run(digits.spec(run_id, score="hard_and_steep"))
    run.push_weights(LEARNER, step=0)
    batch = digits.candidates(0)
    norms = small_cnn_gradient_norms(LEARNER, batch["image"], batch["label"])
    expected = np.array(digits.losses(LEARNER, batch)) * np.array(norms)
    np.testing.assert_allclose(run.score(batch).scores, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("selector", ["softmax", "top_k", "uniform"])
def test_other_selectors_answer_no_weights(client: SelectionClient, run_id: str, selector: str) -> None:
    run = ready_run(client, run_id, selector=selector)
    assert run.select(digits.candidates(0), sub_batch_size=3, step=0).weights is None


def test_own_rules_get_the_losses_that_they_name_and_own_selectors_the_scores(
    client: SelectionClient, run_id: str
) -> None:
    run = ready_run(client, run_id, score="closest_losses", selector="first_of_the_best")
    batch = digits.candidates(0)
    selection = run.select(batch, sub_batch_size=5, step=0)
    learner, reference = (np.array(digits.losses(state, batch)) for state in (LEARNER, REFERENCE))
    np.testing.assert_allclose(selection.scores, -abs(learner - reference), atol=1e-4)
    best = [position for position, score in enumerate(selection.scores) if score >= selection.scores.mean()]
    assert selection.indices.tolist() == best[:5]


def test_an_own_rule_that_fails_later_fails_that_super_batch(client: SelectionClient, run_id: str) -> None:
    run = ready_run(client, run_id, score="moody")
    with pytest.raises(InternalError, match=r"score rule 'moody' gave float32 \[31\], not 32 real numbers"):
        run.select(digits.candidates(0), sub_batch_size=5, step=0)
    assert len(run.select(digits.candidates(1, rows=8), sub_batch_size=5, step=1).indices) == 5
