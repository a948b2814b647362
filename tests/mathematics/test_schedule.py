"""The schedule of a run against fractions worked out by hand, and its uniform draws against equal chances."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preceptor import RunSpec
from preceptor.errors import NonFiniteScoresError
from preceptor_service.randomness import uniforms
from preceptor_service.schedule import count_by_score, is_held_back, share_by_score
from preceptor_service.selectors import topped_up
from tests.naive.selection import held_back, scheduled

DRAWS = 20_000


def spec(**schedule: Any) -> RunSpec:
    return RunSpec("run", model="small_cnn", **schedule)


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ({}, {0: 1, 10**12: 1}),
        ({"select_from_step": 5}, {0: 0, 4: 0, 5: 1, 6: 1}),
        ({"select_until_step": 5}, {0: 1, 4: 1, 5: 0, 99: 0}),
        ({"warm_up_steps": 4}, {0: 0, 1: 0.25, 2: 0.5, 3: 0.75, 4: 1, 5: 1}),
        ({"select_from_step": 10, "warm_up_steps": 2, "select_until_step": 13}, {9: 0, 10: 0, 11: 0.5, 12: 1, 13: 0}),
        ({"uniform_share": 0.25}, {0: 0.75, 7: 0.75}),
        ({"uniform_share": 0.5, "warm_up_steps": 2}, {0: 0, 1: 0.25, 2: 0.5}),
        ({"uniform_share": 1.0}, {3: 0}),
    ],
)
def test_the_share_that_is_drawn_by_score_follows_start_end_ramp_and_mixture(
    schedule: dict[str, Any], shares: dict[int, float]
) -> None:
    assert {step: share_by_score(spec(**schedule), step) for step in shares} == shares


@given(
    start=st.integers(0, 50),
    length=st.integers(1, 50) | st.none(),
    warm_up=st.integers(0, 40),
    share=st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.7, 0.9, 1.0]),
    step=st.integers(0, 120),
    count=st.integers(1, 500),
)
def test_counts_are_those_of_exact_fractions_but_for_halves(start, length, warm_up, share, step, count) -> None:  # type: ignore[no-untyped-def]
    run = spec(
        select_from_step=start,
        select_until_step=None if length is None else start + length,
        warm_up_steps=warm_up,
        uniform_share=share,
    )
    is_half = abs(share_by_score(run, step) * count % 1 - 0.5) < 1e-9
    assert abs(count_by_score(run, step, count) - scheduled(run, step, count)) <= is_half


def test_the_rest_is_drawn_from_the_others_with_equal_chances() -> None:
    chosen, scores = np.array([4, 1]), np.array([9, 0, 3, np.nan, 7, 1, 2], np.float32)
    drawn = np.zeros(7)
    for step in range(DRAWS):
        both = topped_up(chosen, scores, 4, uniforms(2, "rest", step, 0, 7))
        assert both[:2].tolist() == [4, 1]
        drawn[both[2:]] += 1
    assert drawn[[1, 3, 4]].tolist() == [0, 0, 0]
    np.testing.assert_allclose(drawn[[0, 2, 5, 6]] / DRAWS, 1 / 2, atol=4 * np.sqrt(1 / 4 / DRAWS))


def test_too_few_finite_scores_are_counted_with_those_that_are_chosen_already() -> None:
    scores = np.array([1, np.nan, 2, np.inf], np.float32)
    with pytest.raises(NonFiniteScoresError, match="2 of 4 candidates have a finite score, 3 were to be selected"):
        topped_up(np.array([2]), scores, 3, np.full(4, 0.5))


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.9])
def test_the_share_of_blocks_that_is_held_back_is_the_one_asked_for(fraction: float) -> None:
    run = spec(control_fraction=fraction, seed=7)
    held = np.mean([is_held_back(run, step) for step in range(DRAWS)])
    assert held == pytest.approx(fraction, abs=4 * np.sqrt(fraction * (1 - fraction) / DRAWS))


@given(
    fraction=st.floats(0, 0.99),
    block=st.integers(1, 50),
    seed=st.integers(0, 2**63 - 1),
    step=st.integers(0, 2**63 - 1),
)
def test_held_back_steps_are_those_of_the_naive_loop_and_come_in_whole_blocks(fraction, block, seed, step) -> None:  # type: ignore[no-untyped-def]
    run = spec(control_fraction=fraction, control_block_steps=block, seed=seed)
    assert is_held_back(run, step) == held_back(run, step)
    start = step - step % block
    assert {is_held_back(run, start + place) for place in range(block)} == {is_held_back(run, step)}
    assert share_by_score(run, step) == (0 if is_held_back(run, step) else 1)


def test_nothing_is_held_back_that_would_not_be_selected_nor_where_nobody_asked() -> None:
    run = spec(control_fraction=0.99, select_from_step=10, select_until_step=20)
    held = [step for step in range(30) if is_held_back(run, step)]
    assert held
    assert set(held) <= set(range(10, 20))
    assert not any(is_held_back(spec(), step) for step in range(100))


def test_other_seeds_and_runs_hold_back_other_steps() -> None:
    def held(run_id: str, seed: int) -> list[bool]:
        run = RunSpec(run_id, model="small_cnn", control_fraction=0.5, seed=seed)
        return [is_held_back(run, step) for step in range(64)]

    assert len({tuple(held(run_id, seed)) for run_id in ("a", "b") for seed in (0, 1)}) == 4
