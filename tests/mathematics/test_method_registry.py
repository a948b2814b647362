"""Score rules and selectors of the operator's own: what is registered, and what is refused at the start."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from preceptor.errors import InvalidRunError
from preceptor_service.app import start_service
from preceptor_service.config import ConfigError, parse_config
from preceptor_service.method_registry import SCORE_RULES, SELECTORS, MethodRegistry

OWN = "tests.service.methods"


def test_built_in_and_own_methods_are_found_by_name() -> None:
    registry = MethodRegistry({"mine": f"{OWN}:closest_losses"}, {"my-draw": f"{OWN}:first_of_the_best"})
    assert registry.rule("learnability") is SCORE_RULES["learnability"]
    assert registry.selector("softmax") is SELECTORS["softmax"]
    assert registry.rule("mine").needs == ("reference_losses", "learner_losses")
    assert registry.selector("my-draw").log_probabilities is None
    with pytest.raises(InvalidRunError, match=r"score is 'luck'; choose one of .*'mine'"):
        registry.rule("luck")
    with pytest.raises(InvalidRunError, match=r"selector is 'dice'; choose one of .*'my-draw'"):
        registry.selector("dice")


@pytest.mark.parametrize(
    ("name", "path", "complaint"),
    [
        ("learnability", f"{OWN}:closest_losses", "the name is taken by a built-in; choose another"),
        ("mine", "no_such_module:f", "cannot be imported"),
        ("mine", f"{OWN}:no_such_function", "cannot be imported"),
        ("mine", OWN, "cannot be imported .* give 'package.module:function'"),
        ("mine", f"{OWN}:not_a_function", "a int; it must be a function"),
        ("mine", f"{OWN}:without_parameters", r"its parameters are \[\]; name one or more of"),
        ("mine", f"{OWN}:of_the_weather", r"its parameters are \['weather'\]; name one or more of"),
        ("mine", f"{OWN}:one_number", "gave a float, not 8 real numbers, one per candidate"),
        ("mine", f"{OWN}:whole_numbers", r"gave int64 \[8\], not 8 real numbers"),
        ("mine", f"{OWN}:for_scalars", "does not work on a trial: .*ambiguous"),
        ("mine", f"{OWN}:changing", "for the same arguments; a selection can be replayed only"),
    ],
)
def test_a_rule_that_does_not_do_what_rules_do_is_refused(name: str, path: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s)rules\.{name}.*{complaint}"):
        MethodRegistry(rules={name: path})


@pytest.mark.parametrize(
    ("name", "path", "complaint"),
    [
        ("top_k", f"{OWN}:first_of_the_best", "the name is taken by a built-in; choose another"),
        ("mine", f"{OWN}:closest_losses", "does not work on a trial: .*positional"),
        ("mine", f"{OWN}:twice_the_same", "gave positions that are not 3 different ones of 8"),
        ("mine", f"{OWN}:too_many", r"gave int64 \[4\], not the positions of 3 candidates"),
        ("mine", f"{OWN}:whatever_comes_first", "gave a candidate whose score is not finite; it must leave those out"),
    ],
)
def test_a_selector_that_does_not_do_what_selectors_do_is_refused(name: str, path: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s)selectors\.{name}.*{complaint}"):
        MethodRegistry(selectors={name: path})


def test_the_service_does_not_start_with_one(tmp_path: Path) -> None:
    own = {"rules": {"mine": f"{OWN}:one_number"}}
    config = parse_config({"pool": "in-process", "weights": {"path": str(tmp_path)}, **own})
    with pytest.raises(ConfigError, match=r"rules\.mine is 'tests\.service\.methods:one_number', which does not work"):
        start_service(config)


def test_the_documentation_has_a_row_for_each_and_for_no_other(repository: Path) -> None:
    text = (repository / "docs/scoring.md").read_text()
    for heading, known in (("Score rules", SCORE_RULES), ("Selectors", SELECTORS)):
        section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
        rows = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        assert rows[1:] == [row for row in rows if row in known]
        assert set(rows[1:]) == set(known)


def test_the_documented_rule_works(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (repository / "docs/scoring.md").read_text()
    (program,) = re.findall(r"```python\n(def .*?)```", text, re.DOTALL)
    (tmp_path / "documented_rule.py").write_text(f"import numpy as np\n\n\n{program}")
    monkeypatch.syspath_prepend(str(tmp_path))
    rule = MethodRegistry({"margin": "documented_rule:margin"}).rule("margin")
    losses = np.array([5, 1, 0], np.float32)
    assert rule(3, learner_losses=losses, reference_losses=losses * 0).tolist() == [2, 1, 0]
