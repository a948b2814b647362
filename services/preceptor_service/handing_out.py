"""A co-trained run hands each step out once, and its online model trains on it (Algorithm 1, line 8).

Between the pipeline and `CoTrainer`, which knows neither super-batches nor draws.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from preceptor_service.co_trainer import CoTrainer
from preceptor_service.co_training.blocks import Handout
from preceptor_service.co_training.journal import Answer, Columns, Reader
from preceptor_service.drawing import Draw, drawn_for_reference
from preceptor_service.runs import ActiveRun, Pinned
from preceptor_service.selected import Arrived, FallbackReason, Selected
from preceptor_service.super_batch import SuperBatch
from preceptor_service.weight_versions import WeightsVersion


async def given_before(co_trainer: CoTrainer, pinned: Pinned, arrived: Arrived, draw: Draw) -> Selected | None:
    """Returns the answer to a step that the online model is trained on; None where it is not.

    Raises:
        PreceptorError: as `CoTrainer.check` and `CoTrainer.answer`.
    """
    handout = Handout(draw.step, draw.rank)
    co_trainer.check(handout)
    answer = await co_trainer.answer(handout, _identity(arrived, draw))
    return None if answer is None else _repeated(answer, pinned, draw.step)


async def handed_out(
    run: ActiveRun,
    co_trainer: CoTrainer,
    selected: Selected,
    super_batch: SuperBatch,
    arrived: Arrived,
    draw: Draw,
) -> Selected:
    """Has the online model train on the sub-batch; returns it, or what was handed out as that step before.

    Raises:
        PreceptorError: as `CoTrainer.hand_out`.
    """
    learner = selected.pinned.learner
    answer = Answer(
        identity=_identity(arrived, draw),
        indices=selected.indices,
        scores=selected.scores,
        weights=selected.weights,
        learner_version=learner.version if learner else None,
        learner_step=learner.step if learner else None,
        fallback=selected.fallback,
        non_finite_count=selected.non_finite_count,
    )
    rows: dict[Reader, Columns] = {"online": super_batch.take(selected.indices).columns}
    if run.spec.co_training is not None and (count := run.spec.co_training.reference_examples):
        drawn = drawn_for_reference(run.spec, super_batch.rows, draw, count)
        rows["reference"] = super_batch.take(drawn).columns
    given = await co_trainer.hand_out(Handout(draw.step, draw.rank), rows, answer, arrived.deadline)
    return selected if given is answer else _repeated(given, selected.pinned, draw.step)


def _repeated(answer: Answer, pinned: Pinned, step: int) -> Selected:
    """Returns a draw that was made before, and what was known of it."""
    if answer.learner_version is not None and answer.learner_step is not None:
        learner = WeightsVersion(answer.learner_version, answer.learner_step, "", 0, 0.0)
        pinned = replace(pinned, learner=learner, staleness_steps=step - learner.step)
    return Selected(
        answer.indices,
        answer.scores,
        answer.weights,
        pinned,
        cast("FallbackReason | None", answer.fallback),
        answer.non_finite_count,
        is_repeat=True,
    )


def _identity(arrived: Arrived, draw: Draw) -> str:
    return f"{draw.sub_batch_size}/{arrived.digest.hex()}"
