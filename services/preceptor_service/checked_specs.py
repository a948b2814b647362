"""What follows from the settings of a run, found once however many of its trainers ask. Called by the run registry."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from preceptor.errors import InvalidRunError
from preceptor.runs import RunSpec
from preceptor_service.config import ServiceConfig
from preceptor_service.cost_meter import ForwardFlops
from preceptor_service.loss_identity import digest_of, loss_identity
from preceptor_service.method_registry import MethodRegistry
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.reference_losses import ReferenceLosses, ReferenceLossTables
from preceptor_service.scoring.run_models import architecture_of
from preceptor_service.spec_checks import check_method, check_spec
from preceptor_service.tasks import Columns, count_flops, run_columns


@dataclass(frozen=True)
class CheckedSpec:
    """What a run reads and costs; every setting of its spec is in range.

    Attributes:
        columns: of a super-batch.
        flops: of one candidate's forward pass in learner copy and reference.
        table: of reference losses, where it names one.
    """

    columns: Columns
    flops: ForwardFlops
    table: ReferenceLosses | None


class SpecChecker:
    """Checks specs in threads, building their models without weights; for one event loop.

    A crowd that comes back to a new gateway asks for the same few runs at once: each is looked at once.
    """

    def __init__(self, config: ServiceConfig, methods: MethodRegistry, architectures: ArchitectureRegistry) -> None:
        self._keep_versions = config.weights.keep_versions
        self._methods = methods
        self._architectures = architectures
        self._tables = ReferenceLossTables(config.reference_losses)
        self._under_way: dict[str, tuple[RunSpec, asyncio.Task[CheckedSpec]]] = {}

    async def check(self, spec: RunSpec) -> CheckedSpec:
        """Returns what follows from `spec`.

        Raises:
            InvalidRunError: a setting is out of range or names something unknown.
            InvalidWeightsError: the table was made with another reference than the one that is named beside it.
        """
        asked, look = self._under_way.get(spec.run_id, (None, None))
        if look is None or asked != spec:
            look = asyncio.create_task(asyncio.to_thread(self._look_at, spec))
            self._under_way[spec.run_id] = spec, look
            look.add_done_callback(lambda done: self._ended(spec.run_id, done))
        return await asyncio.shield(look)

    def check_table(self, spec: RunSpec, table: ReferenceLosses, weights_digest: str) -> None:
        """Checks that a table was made with the reference of these weights, as `spec` uses it. Blocking.

        Raises:
            InvalidWeightsError: it was not.
        """
        identity = loss_identity(spec.task, *architecture_of(spec, "reference"), weights_digest, self._architectures)
        table.check_reference(digest_of(identity), weights_digest)

    def _ended(self, run_id: str, look: asyncio.Task[CheckedSpec]) -> None:
        if not look.cancelled():
            look.exception()  # whoever asked may have left; nobody else need hear of it
        if self._under_way[run_id][1] is look:
            del self._under_way[run_id]

    def _look_at(self, spec: RunSpec) -> CheckedSpec:
        check_spec(spec)
        check_method(spec, self._methods)
        most_lag = self._keep_versions - 2
        if spec.co_training is not None and spec.co_training.lag > most_lag:
            raise InvalidRunError(
                f"co_training.lag is {spec.co_training.lag}; choose from 0 to {most_lag}, two below the versions "
                "that this service keeps (weights.keep_versions)"
            )
        outline = self._architectures.outline(spec.model, spec.model_config)
        columns = run_columns(spec.task, outline)
        learner_copy = reference = count_flops(spec.task, outline, columns)
        if spec.reference_model is not None:
            outline = self._architectures.outline(spec.reference_model, spec.reference_model_config)
            reads = run_columns(spec.task, outline)
            if reads != columns:
                raise InvalidRunError(
                    "model and reference_model read different super-batches: "
                    f"{columns} and {reads}; give them the same inputs and classes"
                )
            reference = count_flops(spec.task, outline, columns)
        table = None if spec.reference_losses is None else self._tables.table(spec.reference_losses)
        if table is not None and spec.reference_digest is not None:
            self.check_table(spec, table, spec.reference_digest)
        return CheckedSpec(columns, ForwardFlops(learner_copy, reference), table)
