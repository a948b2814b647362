"""Selectors against closed forms, naive loops and their own symmetries."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from preceptor.errors import NonFiniteScoresError
from preceptor_service.method_registry import SELECTORS
from preceptor_service.randomness import uniforms
from preceptor_service.selectors import (
    PRIORITY_OF_NOTHING,
    SelectorSettings,
    importance_weights,
    proportional,
    proportional_log_probabilities,
    softmax,
    top_k,
    uniform,
)

DRAWS = 20_000
PLAIN = SelectorSettings()


def closed_form_inclusion(weights: list[float], count: int) -> list[float]:
    """Chance of each candidate to be among `count` drawn one after the other, without replacement."""
    inclusion = [0.0] * len(weights)
    for order in itertools.permutations(range(len(weights)), count):
        chance, left = 1.0, sum(weights)
        for position in order:
            chance *= weights[position] / left
            left -= weights[position]
        for position in order:
            inclusion[position] += chance
    return inclusion


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_softmax_includes_each_candidate_as_often_as_drawing_one_by_one_would(temperature: float, count: int) -> None:
    scores = np.array([0.3, -1.2, 2.0, 0.0, 1.1], np.float32)
    expected = np.array(closed_form_inclusion(list(np.exp(scores.astype(float) / temperature)), count))
    drawn = np.zeros(len(scores))
    for step in range(DRAWS):
        drawn[
            softmax(scores, count, uniforms(7, "closed-form", step, 0, len(scores)), SelectorSettings(temperature))
        ] += 1
    standard_error = np.sqrt(expected * (1 - expected) / DRAWS)
    np.testing.assert_array_less(np.abs(drawn / DRAWS - expected), 4 * standard_error)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("count", [1, 3])
def test_proportional_includes_each_candidate_as_often_as_drawing_one_by_one_would(exponent: float, count: int) -> None:
    scores = np.array([0.5, 2.0, 1.0, 0.25, 4.0], np.float32)
    expected = np.array(closed_form_inclusion([(float(score) + 1e-6) ** exponent for score in scores], count))
    drawn = np.zeros(len(scores))
    for step in range(DRAWS):
        noise = uniforms(8, "closed-form", step, 0, len(scores))
        drawn[proportional(scores, count, noise, SelectorSettings(priority_exponent=exponent))] += 1
    np.testing.assert_array_less(np.abs(drawn / DRAWS - expected), 4 * np.sqrt(expected * (1 - expected) / DRAWS))


def test_without_an_exponent_proportional_draws_as_uniform() -> None:
    scores, noise = np.array([3, 0, 7, 1], np.float32), uniforms(0, "flat", 0, 0, 4)
    flat = SelectorSettings(priority_exponent=0.0)
    assert proportional(scores, 3, noise, flat).tolist() == uniform(scores, 3, noise, flat).tolist()


def test_scores_of_0_and_below_have_the_least_priority() -> None:
    probabilities = np.exp(proportional_log_probabilities(np.array([-5, 0, 1, np.nan], np.float32), PLAIN))
    total = 1 + 3 * PRIORITY_OF_NOTHING
    least = PRIORITY_OF_NOTHING / total
    assert probabilities.tolist() == pytest.approx([least, least, 1 - 2 * least, 0], rel=1e-9)


def test_importance_weights_are_the_inverse_of_the_chances_over_the_largest() -> None:
    logs = np.log([0.1, 0.2, 0.3, 0.4])
    assert importance_weights(logs, np.array([3, 1]), 1.0, 1.0).tolist() == pytest.approx([0.5, 1.0])
    assert importance_weights(logs, np.array([3, 1]), 1.0, 0.5).tolist() == pytest.approx([np.sqrt(0.5), 1.0])
    assert importance_weights(logs, np.array([3, 1]), 1.0, 0.0).tolist() == [1.0, 1.0]
    # Half of the sub-batch drawn uniformly: chances 0.325 and 0.225.
    assert importance_weights(logs, np.array([3, 1]), 0.5, 1.0).tolist() == pytest.approx([225 / 325, 1.0])


def test_a_single_draw_weighted_in_full_gives_the_mean_of_the_super_batch() -> None:
    scores = np.array([0.5, 2.0, 1.0, 0.25, 4.0], np.float32)
    logs = proportional_log_probabilities(scores, PLAIN)
    values = np.array([1.0, -2.0, 3.0, 10.0, 0.5])
    # The weights of all candidates, taken together, differ from 1 / (B · P) by one factor.
    weights = importance_weights(logs, np.arange(5), 1.0, 1.0).astype(float)
    assert (np.exp(logs) * weights * values).sum() / (np.exp(logs) * weights).sum() == pytest.approx(values.mean())


def test_without_replacement_the_likely_are_included_less_and_the_unlikely_more_often_than_the_weights_assume() -> None:
    chances = [0.5, 0.2, 0.15, 0.1, 0.05]
    assumed = [3 * chance for chance in chances]
    included = closed_form_inclusion(chances, 3)
    assert included[0] < assumed[0]
    assert included[-1] > assumed[-1]
    for chance, inclusion in zip([0.2] * 5, closed_form_inclusion([0.2] * 5, 3), strict=True):
        assert inclusion == pytest.approx(3 * chance)


def test_extreme_exponents_leave_weights_finite() -> None:
    settings = SelectorSettings(priority_exponent=1e3)
    scores = np.array([0, 1e30, 1, 2], np.float32)
    logs = proportional_log_probabilities(scores, settings)
    weights = importance_weights(logs, np.arange(4), 0.5, 1.0)
    assert np.isfinite(weights).all()
    assert weights.max() == 1


def test_softmax_draws_first_in_proportion_to_the_exponential_of_the_score() -> None:
    scores = np.log(np.array([1, 2, 3, 4], np.float32))
    firsts = [softmax(scores, 2, uniforms(1, "firsts", step, 3, 4), PLAIN)[0] for step in range(DRAWS)]
    share = np.bincount(firsts, minlength=4) / DRAWS
    expected = np.array([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_array_less(np.abs(share - expected), 4 * np.sqrt(expected * (1 - expected) / DRAWS))


def test_uniform_includes_each_candidate_equally_often_whatever_the_scores() -> None:
    scores = np.array([100, -100, 0, 3, 5, 8], np.float32)
    drawn = np.zeros(6)
    for step in range(DRAWS):
        drawn[uniform(scores, 2, uniforms(0, "uniform", step, 0, 6), PLAIN)] += 1
    np.testing.assert_allclose(drawn / DRAWS, 1 / 3, atol=4 * np.sqrt(2 / 9 / DRAWS))


def test_top_k_breaks_ties_by_position() -> None:
    scores = np.array([1, 3, 2, 3, 2, 2, 0], np.float32)
    assert top_k(scores, 4, np.full(7, 0.5), PLAIN).tolist() == [1, 3, 2, 4]


def test_softmax_breaks_ties_of_its_keys_by_position() -> None:
    assert softmax(np.zeros(5, np.float32), 3, np.full(5, 0.25), PLAIN).tolist() == [0, 1, 2]


def test_low_temperature_draws_the_largest_scores() -> None:
    scores = np.random.default_rng(0).permutation(100).astype(np.float32)
    noise = uniforms(0, "cold", 1, 0, 100)
    assert (
        softmax(scores, 10, noise, SelectorSettings(temperature=1e-4)).tolist()
        == top_k(scores, 10, noise, PLAIN).tolist()
    )


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_candidates_without_a_finite_score_are_never_selected(name: str) -> None:
    scores = np.array([np.nan, 1, np.inf, -np.inf, 2, 0], np.float32)
    for step in range(50):
        chosen = SELECTORS[name].draw(scores, 3, uniforms(5, "nan", step, 0, 6), PLAIN)
        assert sorted(chosen.tolist()) == [1, 4, 5]


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_asking_for_more_than_the_finite_scores_says_how_many_there_are(name: str) -> None:
    scores = np.array([np.nan, 1, np.inf, 0], np.float32)
    with pytest.raises(NonFiniteScoresError, match=r"2 of 4 candidates have a finite score, 3 were to be selected"):
        SELECTORS[name].draw(scores, 3, np.full(4, 0.5), PLAIN)


finite_scores = arrays(np.float32, st.integers(1, 60), elements=st.floats(-50, 50, width=32))


@given(scores=finite_scores, name=st.sampled_from(sorted(SELECTORS)), seed=st.integers(0, 2**63 - 1), data=st.data())
def test_every_selection_has_the_exact_count_all_different_and_in_range(scores, name, seed, data) -> None:  # type: ignore[no-untyped-def]
    count = data.draw(st.integers(1, len(scores)))
    noise = uniforms(seed, "property", 1, 2, len(scores))
    chosen = SELECTORS[name].draw(scores, count, noise, PLAIN)
    assert chosen.dtype == np.int64
    assert len(set(chosen.tolist())) == count
    assert set(chosen.tolist()) <= set(range(len(scores)))
    assert chosen.tolist() == SELECTORS[name].draw(scores, count, noise, PLAIN).tolist()


@given(data=st.data(), name=st.sampled_from(sorted(SELECTORS)), size=st.integers(1, 40))
def test_permuting_candidates_with_their_noise_permutes_the_selection(data, name, size) -> None:  # type: ignore[no-untyped-def]
    distinct = data.draw(st.lists(st.integers(-1000, 1000), min_size=size, max_size=size, unique=True))
    scores = (np.array(distinct) / 16).astype(np.float32)
    order = np.array(data.draw(st.permutations(range(size))))
    count = data.draw(st.integers(1, size))
    noise = uniforms(3, "permute", 0, 0, size)
    straight = SELECTORS[name].draw(scores, count, noise, PLAIN)
    permuted = SELECTORS[name].draw(scores[order], count, noise[order], PLAIN)
    assert order[permuted].tolist() == straight.tolist()


@given(scores=finite_scores, data=st.data())
def test_top_k_equals_a_naive_sort(scores, data) -> None:  # type: ignore[no-untyped-def]
    count = data.draw(st.integers(1, len(scores)))
    naive = sorted(range(len(scores)), key=lambda position: (-float(scores[position]), position))[:count]
    assert top_k(scores, count, np.full(len(scores), 0.5), PLAIN).tolist() == naive
