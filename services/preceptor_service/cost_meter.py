"""The cost meter: whether selection pays for a run, from counted operations. Called by the gateway."""

from __future__ import annotations

from dataclasses import dataclass

from preceptor.runs import RunSpec
from preceptor_service.cost import PAPER_SAVINGS, break_even_savings, relative_compute
from preceptor_service.scores import ScoreRule


@dataclass(frozen=True)
class ForwardFlops:
    """Floating-point operations of one forward pass of one example; None where they cannot be counted."""

    learner_copy: float | None = None
    reference: float | None = None


@dataclass(frozen=True)
class Cost:
    """What selection costs beside uniform training.

    Attributes:
        learner_flops: of one forward pass of one example, as the trainer declared them; else the learner copy's.
        learner_copy_flops: the same of the learner copy; 0 where the score rule needs none.
        reference_flops: the same of the reference, or of both; 0 where the score rule needs none.
        reference_scored_share: of the candidates, those that the reference scored; the others' losses a table had.
        ratio: B / b over all answers.
        break_even_savings: share of learner updates that must be saved for selection to pay; 1 or above: it cannot.
        expected_savings: share that the trainer expects to save; else the paper's.
        compute_ratio: compute over that of uniform training at that saving, the reference's training charged as
            in the paper's figure.

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

    @property
    def scoring_flops(self) -> float:
        """Operations that score one candidate."""
        return self.learner_copy_flops + self.reference_flops * self.reference_scored_share


def cost_of(
    spec: RunSpec,
    rule: ScoreRule,
    flops: ForwardFlops,
    candidates: int,
    selected: int,
    reference_scored_share: float = 1.0,
    super_batches: int = 0,
) -> Cost | None:
    """Returns the cost of a run that offered `candidates`, got `selected`, and had that share scored by the reference.

    None before the first answer, for a rule that scores nothing, where operations are not known, and where more was
    selected than offered: from a memory bank, a gateway may sample what another one scored.
    `super_batches` is how many those were; read where the reference is trained on some of each.

    None before the first answer, for a rule that scores nothing, and where operations are not known.
    """
    learner = spec.learner_flops or flops.learner_copy
    copy = flops.learner_copy if rule.needs_learner else 0.0
    reference = flops.reference if rule.needs_reference else 0.0
    if spec.cross_reference and reference is not None:
        reference *= 2
    if not 0 < selected <= candidates or not learner or copy is None or reference is None or not copy + reference:
        return None
    online_reference = spec.co_training.reference_examples if spec.co_training is not None else 0
    trained_on = min(online_reference * super_batches, candidates)
    shares = {
        "f_online": copy / learner,
        "f_reference": reference / learner,
        "ratio": candidates / selected,
        # Of two references each is trained on half of the data; an online one is trained on the way.
        "charge_reference_training": 0.0 if online_reference else 0.5 if spec.cross_reference else 1.0,
        "charge_reference_scoring": reference_scored_share,
        "charge_reference_updates": trained_on / selected,
        # A copy of the learner itself is not trained a second time, unless the service does it.
        "charge_online_training": 0.0 if spec.learner_flops is None and spec.co_training is None else 1.0,
    }
    expected = PAPER_SAVINGS if spec.expected_savings is None else spec.expected_savings
    return Cost(
        learner_flops=learner,
        learner_copy_flops=copy,
        reference_flops=reference,
        reference_scored_share=reference_scored_share,
        ratio=candidates / selected,
        break_even_savings=break_even_savings(**shares),
        expected_savings=expected,
        compute_ratio=relative_compute(expected, **shares),
    )
