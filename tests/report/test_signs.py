"""Every sign appears beyond its threshold, and not at it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from preceptor import RunCost, RunSpec
from preceptor_service.report import signs
from preceptor_service.report.example_data import Group
from preceptor_service.report.selections import Period
from preceptor_service.report.signs import Sign
from preceptor_service.uplift import Interval

SPEC = RunSpec("run", model="small_cnn", temperature=2.0)


def periods(offered: Sequence[float | None], selected: Sequence[float | None]) -> list[Period]:
    return [
        Period(at * 10, at * 10 + 9, 10, 0, 0, None, low, high, None)
        for at, (low, high) in enumerate(zip(offered, selected, strict=True))
    ]


def spec(**settings: Any) -> RunSpec:
    return RunSpec(**{"run_id": "run", "model": "small_cnn", "temperature": 2.0, **settings})


def group(name: str, selected: int, expected: float) -> Group:
    return Group(name, 10, 1000, selected, expected)


def cost(ratio: float) -> RunCost:
    return RunCost(1e9, 1e8, 1e8, 2.0, 0.3, 0.25, ratio, 1.0)


HURTS = Interval(-0.02, -0.03, -0.01)
RISING = periods([-9.0] * 8, [2.0, 1.5, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1])
SUNKEN = periods([-9.0] * 8, [2.0, 1.5, 1.0, 0.5, 0.4, 0.3, 0.05, -0.2])
FLAT = periods([0.0] * 8, [3.0] * 6 + [0.15, 0.2])


@pytest.mark.parametrize(
    ("sign", "said"),
    [
        (lambda: signs.measured_harm("acc", "uniform twins", HURTS), "worse by 0.02 (0.01 to 0.03 at 95 % confidence)"),
        (lambda: signs.exhausted_reference(SPEC, SUNKEN), "From step 60 on the mean learnability of what was selected"),
        (lambda: signs.indifferent_scores(SPEC, FLAT), "selected examples score 0.175 higher than offered ones"),
        (
            lambda: signs.indifferent_scores(spec(selector="top_k"), periods([0.0] * 4, [0.5, 0.4, 0.3, 0.09])),
            "score 0.09 higher than offered ones on average, less than 0.1.",
        ),
        (
            lambda: signs.indifferent_scores(
                spec(selector="top_k", task="image_text"), periods([0.0] * 4, [0.5, 0.4, 0.3, 0.009])
            ),
            "score 0.009 higher than offered ones on average, less than 0.01.",
        ),
        (lambda: signs.many_offers(2_001, 100), "100 examples were offered 20.0 times each"),
        (
            lambda: signs.starved_groups("class", [group("rare", 9, 50), group("fine", 90, 50), group("few", 0, 49)]),
            "Selected less than 0.2 times as often as by uniform draws: rare (0.18). Good where",
        ),
        (
            lambda: signs.starved_groups("class", [group(f"c{at}", 0, 99) for at in range(7)]),
            "c0 (0.00), c1 (0.00), c2 (0.00), c3 (0.00), c4 (0.00) and 2 more.",
        ),
        (lambda: signs.many_fallbacks(6, 100), "6 of 100 answers (6.0%)"),
        (lambda: signs.compute_negative(cost(1.0)), "At the expected savings of 25% the run costs 100% of uniform"),
    ],
)
def test_a_sign_appears_and_says_the_number_the_limit_and_what_to_do(
    sign: Callable[[], Sign | None], said: str
) -> None:
    found = sign()
    assert found is not None
    assert said in found.text
    assert found.title


@pytest.mark.parametrize(
    "sign",
    [
        lambda: signs.measured_harm("acc", "twins", Interval(-0.02, -0.05, 0.01)),
        lambda: signs.measured_harm("acc", "twins", Interval(0.02, 0.01, 0.03)),
        lambda: signs.measured_harm("acc", "twins", Interval(-0.02, None, None)),
        lambda: signs.exhausted_reference(SPEC, RISING),
        lambda: signs.exhausted_reference(spec(score="easy_reference"), SUNKEN),
        lambda: signs.exhausted_reference(SPEC, []),
        lambda: signs.exhausted_reference(SPEC, periods([None], [None])),
        lambda: signs.indifferent_scores(SPEC, RISING),
        lambda: signs.indifferent_scores(spec(temperature=1.0), FLAT),
        lambda: signs.indifferent_scores(spec(selector="top_k"), FLAT),
        lambda: signs.indifferent_scores(spec(score="uniform"), FLAT),
        lambda: signs.indifferent_scores(
            spec(selector="top_k", task="image_text"), periods([0.0] * 4, [0.5, 0.4, 0.3, 0.09])
        ),
        lambda: signs.indifferent_scores(spec(selector="top_k", score="gradient_norm"), periods([0.0], [0.0])),
        lambda: signs.indifferent_scores(spec(selector="proportional"), periods([0.0], [0.0])),
        lambda: signs.indifferent_scores(SPEC, periods([None], [None])),
        lambda: signs.many_offers(2_000, 100),
        lambda: signs.many_offers(0, 0),
        lambda: signs.starved_groups("class", [group("enough", 10, 50), group("few", 0, 49.9)]),
        lambda: signs.starved_groups("class", []),
        lambda: signs.many_fallbacks(5, 100),
        lambda: signs.many_fallbacks(0, 0),
        lambda: signs.compute_negative(cost(0.999)),
        lambda: signs.compute_negative(None),
    ],
)
def test_a_sign_does_not_appear_at_its_threshold_or_where_nothing_is_known(sign: Callable[[], Sign | None]) -> None:
    assert sign() is None
