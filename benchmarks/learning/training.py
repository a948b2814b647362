"""One training run: Algorithm 1 of arXiv 2312.05328 through a real service, or the uniform control without any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.learning.cost import Cost, CpuClock
from benchmarks.learning.data import Parts, build
from benchmarks.learning.data.parts import IS_NOISE, Examples, rows_of, take
from benchmarks.learning.measures import measure
from benchmarks.learning.online import OnlineModel
from benchmarks.learning.pruning import pruned
from benchmarks.learning.references import Trained, reference_key, trained
from benchmarks.learning.selecting import selected
from benchmarks.learning.settings import COMPOSER, Training
from benchmarks.learning.trainee import Trainee, flops_of_forward, order
from preceptor_service.reference.objectives import objective_of

_LOOKS = 2
"""How often the learner is looked at on the validation part, the end included."""


def train(settings: Training, work: Path) -> dict[str, Any]:
    """Trains one learner and returns what came of it, for JSON.

    Every number that costs are compared by is in it: operations and processor seconds of the learner, the online model,
    scoring, the reference's training and its table. Looking at the learner is charged to nobody.

    Args:
        settings: all that the run depends on.
        work: where references are kept.

    Raises:
        DataMissingError: the data is not on this machine.
        PreceptorError: the service refused something.
    """
    torch.set_num_threads(1)
    parts = build(settings.data, settings.seed)
    selection = settings.selection
    reference = None
    if selection is not None and selection.reference is not None:
        reference = trained(reference_key(settings, selection.reference), parts, work)
    with ExitStack() as stack:
        learner = Trainee(
            settings.learner, objective_of(settings.task, settings.contrast), settings.updates, settings.learning_rate,
            settings.seed,
        )  # fmt: skip
        online = OnlineModel.of(settings)
        if selection is None:
            clock, batches = CpuClock(), _uniform(settings, parts)
        elif selection.selector == COMPOSER:
            clock, batches = CpuClock(), pruned(settings, parts, learner.model)
        else:
            clock, batches = selected(settings, parts, learner, online, reference, stack)
        curve, noise = _run(settings, parts, learner, online, batches, clock)
        loop_cpu_s = clock.cpu_s
    measured = parts.validation if settings.measured_on == "validation" else parts.test()
    return {
        "quality": measure(settings.task, learner.model, measured),
        "curve": curve,
        "noise_share": noise,
        "costs": _costs(settings, parts, learner, online, reference, loop_cpu_s),
        "reference_quality": None if reference is None else reference.quality,
    }


def _run(
    settings: Training, parts: Parts, learner: Trainee, online: OnlineModel | None, batches: Iterator[Examples],
    clock: CpuClock,
) -> tuple[list[list[float]], float]:  # fmt: skip
    """Trains; returns updates and validation quality at each look, and the share of noise trained on."""
    looks = {settings.updates * look // _LOOKS for look in range(1, _LOOKS + 1)}
    curve, noise = [], 0.0
    for update, batch in enumerate(batches, start=1):
        learner.update(batch)
        if online is not None:
            online.update(batch, update)
        noise += float(batch[IS_NOISE].float().mean())
        if update in looks:
            with clock.left_out():
                found = measure(settings.task, learner.model, parts.validation)
                learner.model.train()
            curve.append([update, *found.values()])
    return curve, noise / settings.updates


def _uniform(settings: Training, parts: Parts) -> Iterator[Examples]:
    for rows in order(rows_of(parts.pool), settings.sub_batch_size, settings.updates, settings.seed):
        yield take(parts.pool, rows)


def _costs(
    settings: Training, parts: Parts, learner: Trainee, online: OnlineModel | None, reference: Trained | None,
    loop_cpu_s: float,
) -> dict[str, Any]:  # fmt: skip
    """Returns costs by what caused them. The loop's seconds cannot be told apart: trainer and service share them."""
    costs = {"learner": Cost(flops=learner.flops), "loop": Cost(cpu_s=loop_cpu_s)}
    selection = settings.selection
    if selection is not None:
        candidates = selection.ratio * settings.sub_batch_size * settings.updates
        if selection.selector == COMPOSER:
            costs["learner_scoring"] = Cost(flops=flops_of_forward(learner.model, parts.pool) * candidates)
        if online is not None:
            costs["online_training"] = Cost(flops=online.flops)
            costs["online_scoring"] = Cost(flops=flops_of_forward(online.model, parts.pool) * candidates)
        if reference is not None:
            costs["reference_training"] = reference.training
            costs["reference_table"] = reference.table
            if selection.reference is not None and not selection.reference.is_table:
                costs["reference_scoring"] = Cost(flops=reference.forward_flops * candidates)
    return {name: asdict(cost) for name, cost in costs.items()}
