"""Score rules against the formulas of the paper, written out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from preceptor_service.method_registry import SCORE_RULES
from preceptor_service.scores import ScoreRule

LEARNER = np.array([0.5, 2.0, 3.5, np.nan], np.float32)
GRADIENT = np.array([0.1, 0.5, 1.4, 0.0], np.float32)
REFERENCE = np.array([0.25, 2.5, 0.5, 1.0], np.float32)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("uniform", [0, 0, 0, 0]),
        ("hard_learner", [0.5, 2.0, 3.5, np.nan]),
        ("easy_reference", [-0.25, -2.5, -0.5, -1.0]),
        ("learnability", [0.25, -0.5, 3.0, np.nan]),
        ("gradient_norm", [0.1, 0.5, 1.4, 0.0]),
    ],
)
def test_each_rule_follows_its_formula(name: str, expected: list[float]) -> None:
    scores = SCORE_RULES[name](4, learner_losses=LEARNER, reference_losses=REFERENCE, learner_gradient_norms=GRADIENT)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, np.array(expected, np.float32))


def test_learnability_is_hard_learner_plus_easy_reference() -> None:
    losses = {"learner_losses": LEARNER, "reference_losses": REFERENCE}
    total = SCORE_RULES["hard_learner"](4, **losses) + SCORE_RULES["easy_reference"](4, **losses)
    np.testing.assert_array_equal(SCORE_RULES["learnability"](4, **losses), total)


def test_infinite_losses_give_scores_that_are_not_finite_and_no_warning() -> None:
    infinite, rule = np.array([np.inf], np.float32), SCORE_RULES["learnability"]
    assert not np.isfinite(rule(1, learner_losses=infinite, reference_losses=infinite)).any()


def test_what_a_rule_needs_follows_from_its_parameters() -> None:
    needs = {name: (rule.needs_learner, rule.needs_reference) for name, rule in SCORE_RULES.items()}
    assert needs["uniform"] == (False, False)
    assert needs["hard_learner"] == (True, False)
    assert needs["easy_reference"] == (False, True)
    assert needs["learnability"] == (True, True)
    assert needs["gradient_norm"] == (True, False)
    with pytest.raises(ValueError, match=r"its parameters are \['losses'\]; name one or more of \['learner_losses'"):
        ScoreRule(lambda losses: losses)
