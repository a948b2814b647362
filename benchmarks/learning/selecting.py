"""The selected sub-batches of a run: from the pool, through the service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks.learning.cost import CpuClock
from benchmarks.learning.data import Parts
from benchmarks.learning.data.parts import Examples, rows_of, take
from benchmarks.learning.online import OnlineModel
from benchmarks.learning.references import TABLE, Trained
from benchmarks.learning.service import client_of_new_service
from benchmarks.learning.settings import Model, Training
from benchmarks.learning.trainee import Trainee, flops_of_forward, order
from preceptor import RunSpec
from preceptor.torch import SelectingLoader


def selected(
    settings: Training, parts: Parts, learner: Trainee, online: OnlineModel | None, reference: Trained | None,
    stack: ExitStack,
) -> tuple[CpuClock, Iterator[Examples]]:  # fmt: skip
    """Creates the run in a service of its own, and returns the clock that all of it is charged to, and sub-batches.

    Starting the service is not charged: it is there before a trainer comes.

    Args:
        settings: with a selection.
        parts: the data.
        learner: whose operations are declared to the cost meter.
        online: is pushed once; None where the rule needs none.
        reference: is pushed; None where the rule needs none.
        stack: ends the service.

    Raises:
        PreceptorError: as `SelectionClient`.
    """
    spec = _spec(settings, flops_of_forward(learner.model, parts.pool))
    super_batch_size = settings.selection.ratio * settings.sub_batch_size  # type: ignore[union-attr]
    tables = None if reference is None else reference.directory
    client = stack.enter_context(client_of_new_service(super_batch_size, tables))
    clock = CpuClock()
    run = client.create_run(spec)
    if reference is not None:
        run.push_reference(reference.state)
    if online is not None:
        online.start(run)
    rows = order(rows_of(parts.pool), super_batch_size, settings.updates, settings.seed)
    super_batches = (take(parts.pool, chosen) for chosen in rows)
    return clock, iter(SelectingLoader(super_batches, run, settings.sub_batch_size))


def _spec(settings: Training, learner_flops: float) -> RunSpec:
    selection = settings.selection
    if selection is None:
        raise ValueError("a uniform run has no spec; the control goes without the service")
    # A rule that needs no online model still names an architecture, whose weights it never waits for.
    online = selection.online or _reference_model(settings)
    reference = None if selection.reference is None else selection.reference.model
    is_other = reference is not None and reference != online
    return RunSpec(
        run_id="learning",
        task=settings.task,
        model=online.architecture,
        model_config=dict(online.config),
        reference_model=reference.architecture if is_other and reference else None,
        reference_model_config=dict(reference.config) if is_other and reference else {},
        score=selection.score,
        selector=selection.selector,
        temperature=selection.temperature,
        seed=settings.seed,
        learner_flops=learner_flops,
        reference_losses=TABLE if selection.reference is not None and selection.reference.is_table else None,
        **selection.settings,
    )


def _reference_model(settings: Training) -> Model:
    selection = settings.selection
    if selection is None or selection.reference is None:
        return settings.learner
    return selection.reference.model
