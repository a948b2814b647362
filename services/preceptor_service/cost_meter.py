"""The cost meter: whether selection pays for a run, from counted operations. Called by the gateway."""

from __future__ import annotations

from dataclasses import dataclass

from preceptor.runs import RunSpec
from preceptor_service.cost import PAPER_SAVINGS, break_even_savings, relative_compute
from preceptor_service.run_counters import RunCounters
from preceptor_service.scores import ScoreRule


@dataclass(frozen=True)
class ForwardFlops:
    """Floating-point operations of one forward pass of one example; None where they cannot be counted."""

    learner_copy: float | None = None
    reference: float | None = None

    def of_rows(self, learner_rows: int, reference_rows: int) -> float:
        """Returns the operations of forward passes of so many rows, as far as they can be counted."""
        return (self.learner_copy or 0.0) * learner_rows + (self.reference or 0.0) * reference_rows


@dataclass(frozen=True)
class Cost:
    """What selection costs beside uniform training.

    Attributes:
        learner_flops: of one forward pass of one example, as the trainer declared them; else the learner copy's.
        learner_copy_flops: the same of the learner copy; 0 where the score rule needs none.
        reference_flops: the same of the reference, or of both; 0 where the score rule needs none.
        reference_scored_share: rows that the reference scored, or each of both, over those that were scored at all; the
            others' losses a table had.
        ratio: ρ, rows that were scored over examples selected: B / b, and what padding adds, and less what was drawn
            unscored.
        break_even_savings: share of learner updates that must be saved for selection to pay; 1 or above: it cannot.
        expected_savings: share that the trainer expects to save; else the paper's.
        compute_ratio: compute over that of uniform training at that saving, the reference's training charged as the
            run says, else as in the paper's figure.

    Source: `preceptor_service.cost`.
    """

    learner_flops: float
    learner_copy_flops: float
    reference_flops: float
    reference_scored_share: float
    ratio: float
    break_even_savings: float
    expected_savings: float
    compute_ratio: float

    @property
    def is_positive(self) -> bool:
        """Whether selection is expected to pay."""
        return self.compute_ratio < 1


def cost_of(spec: RunSpec, rule: ScoreRule, flops: ForwardFlops, counters: RunCounters) -> Cost | None:
    """Returns the cost of what was counted.

    None before something was scored and something selected, for a rule that scores nothing, and where operations are
    not known.
    """
    learner = spec.learner_flops or flops.learner_copy
    copy = flops.learner_copy if rule.needs_learner else 0.0
    reference = flops.reference if rule.needs_reference else 0.0
    if not (counters.selected and counters.has_scored):
        return None
    if not learner or copy is None or reference is None or not copy + reference:
        return None
    references = 2 if spec.cross_reference else 1
    reference *= references
    by_reference = counters.reference_rows / references
    scored = max(counters.learner_rows, by_reference)
    reference_scored_share = by_reference / scored if scored else 0.0
    shares = {
        "f_online": copy / learner,
        "f_reference": reference / learner,
        "ratio": scored / counters.selected,
        "charge_reference_training": _reference_training(spec, reference / learner),
        "charge_reference_scoring": reference_scored_share,
        "charge_reference_updates": _trained_on(spec, counters) / counters.selected,
        # A copy of the learner itself is not trained a second time, unless the service does it.
        "charge_online_training": 0.0 if spec.learner_flops is None and spec.co_training is None else 1.0,
    }
    expected = PAPER_SAVINGS if spec.expected_savings is None else spec.expected_savings
    return Cost(
        learner_flops=learner,
        learner_copy_flops=copy,
        reference_flops=reference,
        reference_scored_share=reference_scored_share,
        ratio=scored / counters.selected,
        break_even_savings=break_even_savings(**shares),
        expected_savings=expected,
        compute_ratio=relative_compute(expected, **shares),
    )


def _reference_training(spec: RunSpec, f_reference: float) -> float:
    """Returns T_r, examples that the reference was trained on beforehand over those of the uniform run."""
    if spec.co_training is not None and spec.co_training.reference_examples:
        return 0.0  # it is trained on the way
    if spec.reference_training_share is not None:
        return spec.reference_training_share / f_reference if f_reference else 0.0
    return 0.5 if spec.cross_reference else 1.0  # of two references each is trained on half of the data


def _trained_on(spec: RunSpec, counters: RunCounters) -> int:
    """Returns the examples that a reference is trained on beside the learner; a super-batch may hold fewer."""
    examples = spec.co_training.reference_examples if spec.co_training is not None else 0
    return min(examples * counters.super_batches, counters.candidates)
