"""Steps, blocks, versions and learning rates, against counting them one by one."""

from __future__ import annotations

import itertools
import math

import pytest

from preceptor import CoTraining
from preceptor_service.co_training.blocks import (
    Handout,
    block_after,
    block_of,
    first_step_of,
    handouts_of,
    learning_rate,
    version_for,
)


@pytest.mark.parametrize(("publish_every", "lag", "first_step"), [*itertools.product((1, 3), (0, 1, 2), (0, 5))])
def test_a_step_is_scored_under_the_version_that_had_seen_all_but_the_lag(
    publish_every: int, lag: int, first_step: int
) -> None:
    spec = CoTraining(publish_every=publish_every, lag=lag, first_step=first_step)
    ends = [first_step]  # of what version 1, 2, … was trained on
    for step in range(first_step, first_step + 20):
        complete = [end for end in ends if end <= step]
        assert version_for(spec, step) == max(1, len(complete) - lag)
        if (step + 1 - first_step) % publish_every == 0:
            ends.append(step + 1)


def test_a_block_is_trained_on_in_the_order_of_steps_and_ranks() -> None:
    spec = CoTraining(publish_every=2, ranks=2, first_step=5)
    assert handouts_of(spec, 1) == (Handout(7, 0), Handout(7, 1), Handout(8, 0), Handout(8, 1))
    assert [block_of(spec, step) for step in range(5, 10)] == [0, 0, 1, 1, 2]
    assert [first_step_of(spec, block) for block in range(3)] == [5, 7, 9]
    assert [block_after(version) for version in (1, 2)] == [0, 1]


def test_without_a_total_the_learning_rate_stays_once_it_is_warm() -> None:
    spec = CoTraining(learning_rate=0.3, warm_up_steps=3, first_step=10)
    assert [learning_rate(spec, step) for step in range(10, 15)] == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3])


def test_with_a_total_it_falls_by_a_half_cosine_to_0_and_stays_there() -> None:
    spec = CoTraining(learning_rate=2.0, total_steps=6, warm_up_steps=2)
    expected = [1.0, 2.0, *(1 + math.cos(math.pi * quarter / 4) for quarter in range(4)), 0.0, 0.0]
    assert [learning_rate(spec, step) for step in range(8)] == pytest.approx(expected)
