"""Signs that selection is likely to hurt, or to gain nothing. Pure functions with their thresholds; None: no sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from preceptor.answers import RunCost
from preceptor.runs import RunSpec
from preceptor_service.report.example_data import Group
from preceptor_service.report.selections import Period
from preceptor_service.uplift import Interval

LATE_SHARE = 0.25
"""The last quarter of a run is late."""
MIN_GAP = 0.1
"""Of mean scores, selected over offered, in units of the temperature: below it a softmax is nearly flat."""
MIN_BEST = 0.1
"""Of mean learnabilities, the best candidates' over all, in nats: below it even they are learnt, or unlearnable."""
MIN_BEST_COSINE = 0.01
"""The same for pairs, whose losses are cosines."""
MAX_OFFERS = 20.0
"""How often an example may be offered, on average, before data and not updates is what is short."""
MIN_OVER_UNIFORM = 0.2
"""A group that is selected less often than a fifth of what uniform draws would is starved …"""
MIN_EXPECTED = 50.0
"""… where uniform draws would have selected so many of it that chance is no explanation."""
MAX_FALLBACK_SHARE = 0.05
"""Of the answers."""


@dataclass(frozen=True)
class Sign:
    """One sign: `title` in a few words, `text` with the numbers, the limit and what to do."""

    title: str
    text: str


def measured_harm(metric: str, comparison: str, gain: Interval) -> Sign | None:
    """The comparison with uniform draws is worse, and its interval excludes chance."""
    if gain.high is None or gain.high >= 0:
        return None
    return Sign(
        f"Selection hurts {metric}",
        f"Beside {comparison} it is worse by {-gain.estimate:.4g} ({-gain.high:.4g} to {-(gain.low or 0):.4g} at 95 % "
        "confidence). End selection earlier (select_until_step), raise the temperature, or use a better reference.",
    )


def exhausted_reference(spec: RunSpec, periods: Sequence[Period]) -> Sign | None:
    """Late in the run even the selected examples have a reference loss that is no lower than the learner copy's.

    For score learnability alone, whose mean over the selected is the learner copy's loss there minus the reference's.
    Over all candidates that mean says nothing bad: on a noisy pool a good reference is far worse than the learner copy,
    because it is surprised by every wrong label.
    """
    late = _late(periods)
    if spec.score != "learnability" or not late:
        return None
    mean = _mean([period.mean_selected for period in late])
    if mean > 0:
        return None
    return Sign(
        "The reference is no better than the learner copy",
        f"From step {late[0].first_step:,} on the mean learnability of what was selected is {mean:.3g}, not above 0: "
        "the reference finds it no easier than the learner copy does, and has nothing left to teach. End selection "
        "there (select_until_step), or use a better reference.",
    )


def indifferent_scores(spec: RunSpec, periods: Sequence[Period]) -> Sign | None:
    """Late in the run selected examples score hardly higher than offered ones.

    Softmax then draws almost uniformly, and `top_k` by learnability picks what no model tells from the rest. So it is
    with a reference no better than the pool, trained on what the learner trains on, which finds easy and hard what the
    learner copy does; and with scores of a small range.
    """
    late = _late(periods)
    limit = _least_gap(spec)
    if limit is None or not late:
        return None
    gap = _mean([period.mean_selected for period in late]) - _mean([period.mean_offered for period in late])
    if gap >= limit:
        return None
    is_softmax = spec.selector == "softmax"
    why = f"{MIN_GAP:g} times the temperature {spec.temperature:g}" if is_softmax else f"{limit:g}"
    return Sign(
        "Selection hardly differs from uniform draws" if is_softmax else "Even the best candidates teach little",
        f"From step {late[0].first_step:,} on selected examples score {gap:.3g} higher than offered ones on average, "
        f"less than {why}. The reference is no better than the pool, or the scores have a small range: train the "
        f"reference on cleaner data{', or lower the temperature' if is_softmax else ', or end selection there'}.",
    )


def _least_gap(spec: RunSpec) -> float | None:
    """Returns the gap below which selection is indifferent; None where no scale of the scores is known."""
    if spec.selector == "softmax" and spec.score != "uniform":
        return MIN_GAP * spec.temperature
    if spec.selector == "top_k" and spec.score == "learnability":
        return MIN_BEST_COSINE if spec.task == "image_text" else MIN_BEST
    return None


def _late(periods: Sequence[Period]) -> Sequence[Period]:
    scored = [period for period in periods if period.mean_selected is not None]
    return scored[-max(1, round(LATE_SHARE * len(scored))) :]


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def many_offers(offered: int, distinct: int) -> Sign | None:
    """Each example was offered so often that data is the bottleneck, where selection gains nothing.

    Source: Kaddour et al., arXiv 2307.06440.
    """
    if not distinct or offered / distinct <= MAX_OFFERS:
        return None
    return Sign(
        "Many epochs over few examples",
        f"{distinct:,} examples were offered {offered / distinct:.1f} times each on average, more than {MAX_OFFERS:g}. "
        "Where data and not updates is short, selection gains little and may overfit: offer more data, or stop "
        "earlier.",
    )


def starved_groups(column: str, groups: Sequence[Group]) -> Sign | None:
    """A class or source is hardly ever selected. Source: REDUCR, arXiv 2312.00486, for the harm to rare groups."""
    starved = [group for group in groups if group.expected >= MIN_EXPECTED and group.over_uniform < MIN_OVER_UNIFORM]
    if not starved:
        return None
    named = ", ".join(f"{group.name[:40]} ({group.over_uniform:.2f})" for group in starved[:5])
    more = f" and {len(starved) - 5} more" if len(starved) > 5 else ""
    return Sign(
        f"Starved by {column}",
        f"Selected less than {MIN_OVER_UNIFORM:g} times as often as by uniform draws: {named}{more}. Good where it is "
        "noise; where you need them, keep a floor with uniform_share and look at the metric of each group.",
    )


def many_fallbacks(fallbacks: int, answers: int) -> Sign | None:
    """Much of what was meant to be selected was drawn uniformly by the run's policies."""
    if not answers or fallbacks / answers <= MAX_FALLBACK_SHARE:
        return None
    return Sign(
        "Many fallbacks",
        f"{fallbacks:,} of {answers:,} answers ({fallbacks / answers:.1%}) were drawn uniformly because scoring was "
        f"late or the learner copy too old, more than {MAX_FALLBACK_SHARE:.0%}. Add scorers, push more often, or raise "
        "the bounds.",
    )


def compute_negative(cost: RunCost | None) -> Sign | None:
    """Selection costs more than it is expected to save."""
    if cost is None or cost.is_positive:
        return None
    return Sign(
        "Compute-negative",
        f"At the expected savings of {cost.expected_savings:.0%} the run costs {cost.compute_ratio:.0%} of uniform "
        f"training; it breaks even at {cost.break_even_savings:.0%}. Score with a smaller online model, or offer fewer "
        "candidates per selected example.",
    )
