"""`MethodRegistry`: every score rule and every selector by the name that a run gives it. Called by runs and scorers.

A client names one; only the operator can add one, by `rules:` and `selectors:` in the configuration.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from preceptor.errors import InternalError, InvalidRunError
from preceptor.quoting import quoted
from preceptor_service import scores, selectors
from preceptor_service.own_functions import imported
from preceptor_service.scores import MEASURED, ScoreRule
from preceptor_service.selectors import Selector, SelectorSettings

Method = TypeVar("Method", ScoreRule, Selector)

SCORE_RULES: Mapping[str, ScoreRule] = {
    "uniform": ScoreRule(None),
    "hard_learner": ScoreRule(scores.hard_learner),
    "easy_reference": ScoreRule(scores.easy_reference),
    "learnability": ScoreRule(scores.learnability),
    "gradient_norm": ScoreRule(scores.gradient_norm),
}
"""The score rules that ship with the service."""

SELECTORS: Mapping[str, Selector] = {
    "uniform": Selector(selectors.uniform),
    "softmax": Selector(selectors.softmax),
    "top_k": Selector(selectors.top_k),
    "proportional": Selector(selectors.proportional, selectors.proportional_log_probabilities),
}
"""The selectors that ship with the service."""

_TRIAL_ROWS, _TRIAL_COUNT = 8, 3


class MethodRegistry:
    """The rules and selectors that ship with the service and those that the operator's config allows.

    The operator's own are tried once here, and what they return is checked at every call; docs/scoring.md has their
    contract. Immutable, so threads may share it.

    Args:
        rules: name → `"package.module:function"` of the operator's own score rules.
        selectors: the same for selectors.

    Raises:
        ValueError: an entry cannot be imported, is no function, takes a built-in's name, or does not do what a rule or
            a selector does.
    """

    def __init__(self, rules: Mapping[str, str] | None = None, selectors: Mapping[str, str] | None = None) -> None:
        own_rules = {name: _own_rule(name, path) for name, path in (rules or {}).items()}
        own_selectors = {name: _own_selector(name, path) for name, path in (selectors or {}).items()}
        self._rules = {**SCORE_RULES, **own_rules}
        self._selectors = {**SELECTORS, **own_selectors}

    def rule(self, name: str) -> ScoreRule:
        """Returns a score rule.

        Raises:
            InvalidRunError: there is none of that name.
        """
        return _named("score", name, self._rules)

    def selector(self, name: str) -> Selector:
        """Returns a selector.

        Raises:
            InvalidRunError: there is none of that name.
        """
        return _named("selector", name, self._selectors)


def _named(setting: str, name: str, known: Mapping[str, Method]) -> Method:
    if name not in known:
        raise InvalidRunError(f"{setting} is {quoted(name)}; choose one of {sorted(known)}")
    return known[name]


def _own_rule(name: str, path: str) -> ScoreRule:
    function = imported("rules", name, path, SCORE_RULES)

    @functools.wraps(function)  # keeps the names of its parameters
    def checked(*measured: NDArray[np.float32]) -> NDArray[np.float32]:
        given = function(*measured)
        if not isinstance(given, np.ndarray) or given.shape != measured[0].shape or given.dtype.kind != "f":
            raise InternalError(
                f"score rule {name!r} gave {_described(given)}, not {len(measured[0])} real numbers, one per candidate"
            )
        return given.astype(np.float32, copy=False)

    def trial() -> NDArray[np.float32]:
        rule = ScoreRule(checked)
        return rule(_TRIAL_ROWS, **dict.fromkeys(MEASURED, np.linspace(0.5, 4, _TRIAL_ROWS, dtype=np.float32)))

    _try_twice("rules", name, path, trial)
    return ScoreRule(checked)


def _own_selector(name: str, path: str) -> Selector:
    function = imported("selectors", name, path, SELECTORS)

    def checked(
        scores: NDArray[np.float32], count: int, uniforms: NDArray[np.float64], settings: SelectorSettings
    ) -> NDArray[np.int64]:
        chosen = function(scores, count, uniforms, settings)
        if not isinstance(chosen, np.ndarray) or chosen.shape != (count,) or chosen.dtype.kind not in "iu":
            raise InternalError(f"selector {name!r} gave {_described(chosen)}, not the positions of {count} candidates")
        if len(np.unique(chosen)) < count or chosen.min() < 0 or chosen.max() >= len(scores):
            raise InternalError(
                f"selector {name!r} gave positions that are not {count} different ones of {len(scores)}"
            )
        if not np.isfinite(scores[chosen]).all():
            raise InternalError(
                f"selector {name!r} gave a candidate whose score is not finite; it must leave those out"
            )
        return chosen.astype(np.int64, copy=False)

    def trial() -> NDArray[np.int64]:
        some = np.array([0.5, np.nan, 2, 0, -1, np.inf, 4, 3], np.float32)
        return checked(some, _TRIAL_COUNT, np.linspace(0.1, 0.9, _TRIAL_ROWS), SelectorSettings())

    _try_twice("selectors", name, path, trial)
    return Selector(checked)


def _try_twice(setting: str, name: str, path: str, trial: Callable[[], NDArray[Any]]) -> None:
    try:
        first, second = trial(), trial()
    except Exception as error:  # the operator's code may fail in any way
        raise ValueError(f"{setting}.{name} is {path!r}, which does not work on a trial: {error}") from error
    if not np.array_equal(first, second, equal_nan=True):
        raise ValueError(
            f"{setting}.{name} is {path!r}, which gave {first} and then {second} for the same arguments; a selection "
            "can be replayed only where they decide alone, so draw from the uniforms that are passed"
        )


def _described(given: object) -> str:
    return f"{given.dtype} {list(given.shape)}" if isinstance(given, np.ndarray) else f"a {type(given).__name__}"
