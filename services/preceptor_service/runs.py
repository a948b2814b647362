"""Runs as one gateway knows them: settings checked once, weights followed, answers counted."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from preceptor.errors import (
    OverloadedError,
    PreceptorError,
    RunNotFoundError,
    UnavailableError,
    WeightsMissingError,
)
from preceptor.quoting import quoted
from preceptor.runs import RunSpec
from preceptor.v1 import weights_pb2
from preceptor_service.checked_specs import CheckedSpec, SpecChecker
from preceptor_service.co_trainer import CoTrainer
from preceptor_service.collector import Collector
from preceptor_service.config import ServiceConfig
from preceptor_service.cost_meter import Cost, ForwardFlops, cost_of
from preceptor_service.method_registry import MethodRegistry
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.models.manifest import check_weights
from preceptor_service.reference_losses import ReferenceLosses
from preceptor_service.reference_usage import check_adopted, check_card, usage_by
from preceptor_service.run_counters import RunCounters
from preceptor_service.run_store import RunRecord, RunStore
from preceptor_service.schedule import share_by_score
from preceptor_service.scores import ScoreRule
from preceptor_service.scoring.pool import LoadReport, ScorerPool, ScoringModels, Trained
from preceptor_service.scoring.run_models import architecture_of, scoring_models
from preceptor_service.selectors import Selector
from preceptor_service.spec_checks import RUN_ID, check_pinned_weights_last, check_room
from preceptor_service.tasks import Columns
from preceptor_service.weight_store import WeightStore
from preceptor_service.weight_versions import Role, WeightsVersion

_REFRESH_S = 0.5
_REFRESH_TIMEOUT_S = 2.0
_POLL_S = 0.05
_UNKNOWN_FLOPS = ForwardFlops()

_Heads: TypeAlias = tuple[RunRecord | None, tuple[WeightsVersion | None, ...]]
"""A run's record, and the latest version of learner, reference, and reference of fold 1."""

logger = logging.getLogger(__name__)


@dataclass
class ActiveRun:
    """One run: its record, what follows from it, and the weights that new super-batches use.

    `learner` only ever moves to a higher version. `deleted` is set once this life of the run is known
    to be over; `is_cut_off` while the store does not tell. Who holds `reporting` reads or writes its reported metrics.
    """

    record: RunRecord
    columns: Columns
    rule: ScoreRule
    selector: Selector
    deadline_s: float
    flops: ForwardFlops = _UNKNOWN_FLOPS
    table: ReferenceLosses | None = None
    learner: WeightsVersion | None = None
    reference: WeightsVersion | None = None
    reference_fold_1: WeightsVersion | None = None
    co_trainer: CoTrainer | None = None
    counters: RunCounters = field(default_factory=RunCounters)
    refreshed_at: float = -math.inf
    is_cut_off: bool = False
    look: asyncio.Task[_Heads] | None = None
    loading: asyncio.Task[LoadReport] | None = None
    loading_version: int = 0
    deleted: asyncio.Event = field(default_factory=asyncio.Event)
    reporting: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def spec(self) -> RunSpec:
        """The trainer's settings."""
        return self.record.spec

    @property
    def run_id(self) -> str:
        """Name of the run."""
        return self.record.spec.run_id

    @property
    def micro_batch_rows(self) -> int:
        """Rows of one forward pass."""
        return self.record.micro_batch_rows

    @property
    def last_step(self) -> int | None:
        """Highest step answered by this gateway; of a co-trained run by any, as far as known."""
        steps = (self.counters.last_step, self.co_trainer.last_step if self.co_trainer else None)
        return max((step for step in steps if step is not None), default=None)

    @property
    def cost(self) -> Cost | None:
        """Whether selection pays, by what this gateway answered; None where that cannot be said."""
        return cost_of(self.spec, self.rule, self.flops, self.counters)

    @property
    def lacks_reference(self) -> bool:
        """Whether a reference, or one of the two, is still to be pushed."""
        if self.spec.co_training is not None and self.spec.co_training.reference_examples:
            return False  # it is trained in the service
        return self.reference is None or (self.spec.cross_reference and self.reference_fold_1 is None)

    def models(self, learner: WeightsVersion | None) -> ScoringModels:
        """Returns what scorers need to score under `learner` and the run's reference, or its two."""
        return scoring_models(self.spec, self.rule, learner, self.reference, self.reference_fold_1)

    def advance(self, version: WeightsVersion | None) -> None:
        """Uses `version` for new super-batches, unless a later one is in use."""
        if version is not None and (self.learner is None or version.version > self.learner.version):
            self.learner = version


@dataclass(frozen=True)
class StoredRun:
    """A run that this gateway does not serve, as it lies in the stores: its record, and its newest weights by role."""

    record: RunRecord
    heads: Mapping[str, WeightsVersion]


@dataclass(frozen=True)
class Pinned:
    """The one learner version behind one super-batch, and how old it is."""

    models: ScoringModels
    learner: WeightsVersion | None
    staleness_steps: int | None
    is_too_stale: bool


class RunRegistry:
    """All runs of the service, as seen from one gateway's event loop.

    The stores are the truth; this caches what they say. Another gateway's pushes are noticed within
    half a second, at the next super-batch; while the store does not answer, super-batches go on with what is known.
    `forgotten` is told the id of every run that is gone, `co_trained` each training that made a version here, and of
    how many steps.
    """

    def __init__(
        self,
        config: ServiceConfig,
        run_store: RunStore,
        weight_store: WeightStore,
        architectures: ArchitectureRegistry,
        pool: ScorerPool,
        forgotten: Callable[[str], None] = lambda run_id: None,
        co_trained: Callable[[ActiveRun, Trained, int], None] = lambda run, trained, steps: None,
    ) -> None:
        self._config = config
        self._run_store = run_store
        self._weight_store = weight_store
        self._architectures = architectures
        self._methods = MethodRegistry(config.rules, config.selectors)
        self._specs = SpecChecker(config, self._methods, architectures)
        self._pool = pool
        self._forgotten = forgotten
        self._co_trained = co_trained
        self._active: dict[str, ActiveRun] = {}
        self.collector = Collector(weight_store, config.weights.grace_s)

    async def create(self, spec: RunSpec, owner: str | None = None) -> ActiveRun:
        """Creates a run of `owner`, or returns the existing one of the same spec, whoever created it.

        Raises:
            InvalidRunError: a setting is out of range or names something unknown.
            RunExistsError: the run exists with another spec.
            WeightsNotFoundError: no reference of `spec.reference_digest`.
            InvalidWeightsError: that reference does not fit the run's architecture, or was used otherwise.
            OverloadedError: too many runs.
        """
        checked = await self._checked(spec)
        record = RunRecord(spec, time.time(), self._micro_batch_rows(checked.columns), owner)
        record = await asyncio.to_thread(self._store, record)
        run = await self._activate(record, checked)
        if run.co_trainer is not None:
            run.advance(await run.co_trainer.begin())
        return run

    async def get(self, run_id: str) -> ActiveRun:
        """Returns a run with its latest committed weights.

        Raises:
            RunNotFoundError: there is no such run.
        """
        run = self._active.get(run_id)
        if run is not None:
            try:
                await self._refresh(run)
            except RunNotFoundError:
                pass  # deleted through another gateway, perhaps made anew
            else:
                return run
        if not RUN_ID.fullmatch(run_id):
            raise RunNotFoundError(f"there is no run {quoted(run_id)}; a run id matches {RUN_ID.pattern}")
        record = await asyncio.to_thread(self._run_store.read, run_id)
        return await self._activate(record, await self._checked(record.spec))

    async def list(self, may_see: Callable[[RunRecord], bool]) -> list[ActiveRun | StoredRun]:
        """Returns the runs that `may_see`, by run id; one whose record is damaged or disappears is left out.

        Activates none: what is not served here comes as it is stored.
        """
        records = await asyncio.to_thread(self._run_store.records)
        stored = {record.spec.run_id: record for record in records}
        for run in [run for run_id, run in self._active.items() if run.record != stored.get(run_id)]:
            with suppress(PreceptorError):  # deleted through another gateway, perhaps made anew
                await self._refresh(run, at_once=True)
        seen = [record for record in records if may_see(record)]
        idle = {record.spec.run_id for record in seen if self._serving(record) is None}
        heads = await asyncio.to_thread(self._weight_store.heads, idle)
        runs: list[ActiveRun | StoredRun] = []
        for record in seen:
            active = self._serving(record)
            if active is None:
                runs.append(StoredRun(record, heads.get(record.spec.run_id, {})))
                continue
            with suppress(PreceptorError):
                await self._refresh(active)
                runs.append(active)
        return runs

    async def delete(self, run_id: str) -> None:
        """Deletes a run and its weights.

        Raises:
            RunNotFoundError: there is no such run.
        """
        if not RUN_ID.fullmatch(run_id) or not await asyncio.to_thread(self._run_store.exists, run_id):
            raise RunNotFoundError(f"there is no run {quoted(run_id)}")
        former = self._active.get(run_id)
        # The record last: what is cut off in between can be deleted again.
        await asyncio.to_thread(self._weight_store.delete_run, run_id)
        await asyncio.to_thread(self._run_store.delete, run_id)
        latter = self._active.get(run_id)  # activated meanwhile, perhaps
        for run in (former, latter):
            if run is not None and (former is None or run.record == former.record):
                self._forget(run)
        self.collector.ask()

    async def stop(self) -> None:
        """Ends what is trained here; nothing is lost."""
        for run in self._active.values():
            if run.co_trainer is not None:
                await run.co_trainer.stop()
        await self.collector.stop()

    async def pin(self, run: ActiveRun, step: int | None, observed_version: int) -> Pinned:
        """Names the learner version for `step`, at least `observed_version`; see `Pipeline.pin`.

        Raises:
            WeightsMissingError: the score rule needs weights that were never pushed.
            UnavailableError: `observed_version` has not reached this gateway.
            RunNotFoundError: the run was deleted.
        """
        if run.co_trainer is not None and run.learner is None:
            run.advance(await run.co_trainer.begin())  # it could not be made when the run was created
        if step is not None and not share_by_score(run.spec, step):
            await self._refresh(run)
            return Pinned(run.models(None), None, None, False)
        await self._refresh(run, at_once=observed_version > _version(run.learner) or self._lacks_weights(run))
        if run.rule.needs_learner and run.learner is None:
            raise WeightsMissingError(
                f"run {run.run_id!r} has no learner weights; call push_weights(state_dict, step) first"
            )
        if run.rule.needs_reference and run.lacks_reference:
            raise WeightsMissingError(_no_reference(run))
        if run.co_trainer is not None and step is not None:
            return Pinned(run.models(None), None, None, False)  # `co_trained` waits for the version
        if not run.rule.needs_learner:
            return Pinned(run.models(None), None, None, False)
        if observed_version > _version(run.learner):
            await self._catch_up(run, observed_version)
        learner = run.learner
        if learner is None:
            raise WeightsMissingError(f"run {run.run_id!r} lost its learner weights; push them again")
        if step is None:
            return Pinned(run.models(learner), learner, None, False)
        staleness = step - learner.step
        bound = run.spec.max_staleness_steps
        return Pinned(run.models(learner), learner, staleness, bound is not None and staleness > bound)

    async def co_trained(self, co_trainer: CoTrainer, run: ActiveRun, step: int, deadline: float) -> Pinned:
        """Names the one learner version that scores `step` of a co-trained run, once it is trained.

        Raises:
            PreceptorError: as `CoTrainer.version`.
        """
        learner = await co_trainer.version(step, deadline)
        return Pinned(run.models(learner), learner, step - learner.step, False)

    async def wait_for_push(self, run: ActiveRun, deadline: float) -> bool:
        """Waits until new super-batches use a later learner version; False at `deadline` (loop time)."""
        before = _version(run.learner)
        loop = asyncio.get_running_loop()
        while _version(run.learner) == before:
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(_POLL_S)
            await self._refresh(run)
        return True

    async def serve(self, run: ActiveRun, version: WeightsVersion) -> LoadReport:
        """Has every scorer load `version`, then uses it for new super-batches.

        Super-batches under way keep the version that they were pinned to.
        """
        run.loading_version = max(run.loading_version, version.version)
        try:
            report = await self._pool.load(run.models(version))
        except BaseException:  # cut off, e.g. with the push: the next refresh tries again
            run.loading_version = _version(run.learner)
            raise
        run.advance(version)
        return report

    async def serve_reference(self, run: ActiveRun, role: Role, version: WeightsVersion) -> LoadReport:
        """Uses `version` as the run's reference, of one fold where it has two, and has every scorer load it."""
        if role == "reference_fold_1":
            run.reference_fold_1 = version
        else:
            run.reference = version
        return await self._pool.load(run.models(None))

    def check_weights(self, run: ActiveRun, role: Role, path: Path, digest: str) -> None:
        """Checks a safetensors file against the architecture that `role` has in `run`, and its table. Blocking.

        Raises:
            InvalidWeightsError: a tensor is missing, extra, misshapen, of another type or not finite; or the run's
                table of reference losses was made with another reference.
        """
        check_weights(path, self._architectures.outline(*architecture_of(run.spec, role)))
        if role == "reference" and run.table is not None:
            self._specs.check_table(run.spec, run.table, digest)

    def check_card(self, run: ActiveRun, role: Role, card: weights_pb2.ReferenceCard) -> None:
        """Checks that `run` uses a reference as its card says that it was trained. Blocking.

        Raises:
            InvalidWeightsError: naming the first difference.
        """
        check_card(usage_by(run.spec, role, self._architectures), card, run.run_id, self._architectures)

    def is_current(self, run: ActiveRun) -> bool:
        """Tells whether `run` is neither deleted nor replaced by another of its name. Blocking.

        Raises:
            InternalError: its record is damaged.
        """
        return self._run_store.holds(run.record)

    def _serving(self, record: RunRecord) -> ActiveRun | None:
        run = self._active.get(record.spec.run_id)
        return run if run is not None and run.record == record else None

    def _lacks_weights(self, run: ActiveRun) -> bool:
        return (run.rule.needs_learner and run.learner is None) or (run.rule.needs_reference and run.lacks_reference)

    async def _refresh(self, run: ActiveRun, at_once: bool = False) -> None:
        now = time.monotonic()
        if not at_once and now - run.refreshed_at < _REFRESH_S:
            return
        must_know = at_once or run.refreshed_at == -math.inf
        before, run.refreshed_at = run.refreshed_at, now
        try:
            record, (head, fold_0, fold_1) = await (
                asyncio.to_thread(self._read_heads, run) if must_know else self._heads_soon(run)
            )
        except (UnavailableError, TimeoutError) as error:
            if must_know:
                run.refreshed_at = before
                raise
            if not run.is_cut_off:
                logger.warning("run %s goes on with what is known of it: %s", run.run_id, error)
            run.is_cut_off = True
            return
        except asyncio.CancelledError:
            run.refreshed_at = before
            raise
        run.is_cut_off = False
        if record != run.record:
            run.refreshed_at = -math.inf
            self._forget(run)
            raise RunNotFoundError(f"run {run.run_id!r} was deleted; create it again")
        run.reference = run.reference or fold_0
        run.reference_fold_1 = run.reference_fold_1 or fold_1
        if head is None or head.version <= _version(run.learner):
            return
        if run.learner is None or run.co_trainer is not None:
            run.advance(head)
        elif head.version > run.loading_version:
            run.loading = asyncio.create_task(self.serve(run, head))

    async def _heads_soon(self, run: ActiveRun) -> _Heads:
        """As `_read_heads`, one look at a time: of a store that hangs no second thread is made to wait.

        Raises:
            TimeoutError: the store does not tell soon.
        """
        look = run.look
        if look is None:
            look = run.look = asyncio.create_task(asyncio.to_thread(self._read_heads, run))
            look.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever asked may have left
        await asyncio.wait({look}, timeout=0 if run.is_cut_off else _REFRESH_TIMEOUT_S)
        if not look.done():
            raise TimeoutError("the store is slow")
        if run.look is look:
            run.look = None
        return look.result()

    async def _catch_up(self, run: ActiveRun, observed_version: int) -> None:
        head = await asyncio.to_thread(self._weight_store.newest_intact, run.run_id, "learner")
        run.advance(head)
        if _version(run.learner) < observed_version:
            raise UnavailableError(
                f"this gateway knows learner version {_version(run.learner)} of run {run.run_id!r}, "
                f"the trainer has seen {observed_version}; try again"
            )

    def _read_heads(self, run: ActiveRun) -> _Heads:
        try:
            record = self._run_store.read(run.run_id)
        except RunNotFoundError:
            return None, (None, None, None)
        # Of a damaged version the one before serves, until newer weights are pushed.
        learner = self._weight_store.newest_intact(run.run_id, "learner")
        # A reference never changes, few runs have two, and a look costs a request where the store is a bucket.
        reference = run.reference or self._weight_store.head(run.run_id, "reference")
        fold_1 = self._weight_store.head(run.run_id, "reference_fold_1") if run.spec.cross_reference else None
        return record, (learner, reference, fold_1)

    async def _checked(self, spec: RunSpec) -> CheckedSpec:
        """Returns what follows from `spec`, which is known of a run that this gateway serves."""
        run = self._active.get(spec.run_id)
        if run is not None and run.spec == spec:
            return CheckedSpec(run.columns, run.flops, run.table)
        return await self._specs.check(spec)

    async def _activate(self, record: RunRecord, checked: CheckedSpec) -> ActiveRun:
        deadline_s = record.spec.deadline_s or self._config.gateway.deadline_s
        run = self._active.get(record.spec.run_id)
        if run is not None and run.record != record:
            self._forget(run)
        if run is None or run.record != record:
            rule, selector = self._methods.rule(record.spec.score), self._methods.selector(record.spec.selector)
            run = ActiveRun(record, checked.columns, rule, selector, deadline_s, checked.flops, checked.table)
            run.co_trainer = self._co_trainer(run)
            self._active[run.run_id] = run
            if run.co_trainer is not None:
                await run.co_trainer.resume()
        await self._refresh(run)
        return run

    def _co_trainer(self, run: ActiveRun) -> CoTrainer | None:
        if run.spec.co_training is None:
            return None

        def committed(version: WeightsVersion, trained: Trained, steps: int) -> None:
            run.advance(version)
            if not run.deleted.is_set():
                self._co_trained(run, trained, steps)

        return CoTrainer(
            run.spec,
            self._weight_store,
            self._pool,
            self._config.co_training,
            lambda: self.is_current(run),
            committed,
            self.collector.ask,
        )

    def _forget(self, run: ActiveRun) -> None:
        """Ends this life of the run here: its streams, its counters, its pending load."""
        run.deleted.set()
        if run.loading is not None:
            run.loading.cancel()
        if run.co_trainer is not None:
            run.co_trainer.end()
        if self._active.get(run.run_id) is run:
            del self._active[run.run_id]
            self._forgotten(run.run_id)

    def _store(self, record: RunRecord) -> RunRecord:
        run_id, limit = record.spec.run_id, self._config.limits.max_runs
        if not self._run_store.exists(run_id):
            if len(self._run_store.list()) >= limit:
                raise OverloadedError(
                    f"the service holds {limit} runs, as many as limits.max_runs allows; delete some first",
                    limit="limits.max_runs",
                )
            check_pinned_weights_last(record.spec, self._config.weights.grace_s)
            if record.spec.memory_bank is not None:
                check_room(record.spec.memory_bank, self._config.memory_bank)
        digest = record.spec.reference_digest
        if digest is not None:
            outline = self._architectures.outline(*architecture_of(record.spec, "reference"))
            check_weights(self._weight_store.blob_path(digest), outline)
            check_adopted(record.spec, digest, self._run_store, self._weight_store, self._architectures)
        stored = self._run_store.create(record)
        if digest is not None:
            self._weight_store.adopt(run_id, "reference", digest, lambda: self._run_store.holds(stored))
        return stored

    def _micro_batch_rows(self, columns: Columns) -> int:
        """Returns the configured rows, or fewer where that many candidates would not fit into `in_flight_bytes`."""
        fitting = self._config.gateway.in_flight_bytes // sum(column.row_bytes for column in columns)
        return max(1, min(self._config.scorer.micro_batch_rows, fitting))


def _no_reference(run: ActiveRun) -> str:
    if not run.spec.cross_reference:
        return f"run {run.run_id!r} has no reference; call push_reference(state_dict) first"
    fold = 0 if run.reference is None else 1
    return f"run {run.run_id!r} has no reference of fold {fold}; call push_reference(state_dict, fold={fold}) first"


def _version(version: WeightsVersion | None) -> int:
    return 0 if version is None else version.version
