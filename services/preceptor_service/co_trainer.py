"""`CoTrainer`: one gateway's part in the co-training of one run. Called by the pipeline and the run registry.

A sub-batch goes into the journal before it is answered; a block whose sub-batches are all there is trained by a scorer
and committed as the next learner version. Any gateway may do either at any time: the journal and the weight store take
each sub-batch and each version once, by exclusive creation.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from preceptor.co_training import CoTraining
from preceptor.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidSuperBatchError,
    OverloadedError,
    PreceptorError,
    PushConflictError,
    RunNotFoundError,
    ScorersUnavailableError,
    StepExistsError,
    StepsNotKeptError,
    TooLargeError,
    WeightsNotFoundError,
)
from preceptor.runs import RunSpec
from preceptor_service.co_training.blocks import (
    Handout,
    block_after,
    block_of,
    first_step_of,
    handouts_of,
    version_for,
)
from preceptor_service.co_training.journal import Answer, Columns, Journal, Reader, entry_content
from preceptor_service.config import CoTrainingConfig
from preceptor_service.scoring.pool import ScorerLostError, ScorerPool, Trained, Trainee, Training
from preceptor_service.scoring.run_models import architecture_of
from preceptor_service.weight_store import WeightStore
from preceptor_service.weight_versions import Role, WeightsVersion

_POLL_S = (0.02, 0.5)
"""First and longest pause between two looks at what other gateways did."""
_TAKE_OVER_S = 1.0
"""So long, and so many times the last training, a complete block is left to the gateway that completed it."""
_TAKE_OVER_TIMES = 3.0
_RETRY_S = (0.0, 0.1, 0.3, 1.0, 1.0)
"""Pauses after each lost scorer. Afterwards whoever waits for the version begins anew."""
_LOOK_S = 5.0
"""A look at the store counts so long as what is known of it."""
_CLEAR_S = 10.0
"""Rows stay so long after this gateway saw them trained on, longer than a look counts."""
_VERSIONS_HELD = 16
_ANSWERS_BYTES = 16 << 20

logger = logging.getLogger(__name__)


class CoTrainer:
    """Lives on one event loop, for one life of a run; `stop` ends its tasks, and loses nothing.

    Holds the last answers in memory, up to 16 MiB, and no rows.

    Args:
        spec: the run, with co-training.
        weights: where versions are committed.
        pool: who trains.
        settings: what bounds the journal.
        is_current: whether the run is still the one that was meant; blocking.
        committed: told each version that this gateway made, its training, and how many steps.
        collect: begins to remove what expired in the store, now and then.
    """

    def __init__(
        self,
        spec: RunSpec,
        weights: WeightStore,
        pool: ScorerPool,
        settings: CoTrainingConfig,
        is_current: Callable[[], bool],
        committed: Callable[[WeightsVersion, Trained, int], None],
        collect: Callable[[], None],
    ) -> None:
        if spec.co_training is None:
            raise ValueError(f"run {spec.run_id!r} has no co_training")
        self._run_id = spec.run_id
        self._run = spec
        self._spec: CoTraining = spec.co_training
        self._weights = weights
        self._journal = Journal(weights.storage)
        self._pool = pool
        self._settings = settings
        self._is_current = is_current
        self._committed = committed
        self._collect = collect
        self._folder: str | None = None
        self._versions: dict[int, WeightsVersion] = {}
        self._head = 0
        self._seen_at: dict[int, float] = {}  # version → when this gateway saw it first
        self._looked_at = self._polled_at = -math.inf
        self._complete_since = (-1, 0.0)  # the newest version, and since when the block after it is complete
        self._handouts: set[Handout] = set()  # in the journal, as far as known, and not trained on
        self._answers: dict[Handout, Answer] = {}
        self._answers_bytes = 0
        self._change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._work: asyncio.Task[None] | None = None
        self._is_asked = False
        self._clearing: asyncio.Task[None] | None = None
        self._cleared_at = time.monotonic()
        self._last_training_s = 0.0
        self._failure: FailedPreconditionError | None = None

    @property
    def last_step(self) -> int | None:
        """The highest step that was handed out, as far as known; None before the first."""
        steps = [handout.step for handout in self._handouts]
        if self._head > 1:
            steps.append(first_step_of(self._spec, block_after(self._head)) - 1)
        return max(steps, default=None)

    async def resume(self) -> None:
        """Reads how far the run is."""
        await self._look()
        await self._is_complete(block_after(max(1, self._head)))

    async def begin(self) -> WeightsVersion:
        """Makes version 1, the untrained model, where it is missing; returns the newest version.

        Raises:
            PreceptorError: it cannot be made now; call again.
        """
        await self._look()
        if self._head == 0:
            await self._advance_to(1)
        return self._versions[self._head]

    def check(self, handout: Handout) -> None:
        """Refuses what is no step of the run.

        Raises:
            InvalidSuperBatchError: `step` or `rank` is out of range.
        """
        if handout.step < self._spec.first_step:
            raise InvalidSuperBatchError(
                f"step is {handout.step}, and co_training.first_step of run {self._run_id!r} is "
                f"{self._spec.first_step}; begin there"
            )
        if handout.rank >= self._spec.ranks:
            raise InvalidSuperBatchError(
                f"rank is {handout.rank}, and co_training.ranks of run {self._run_id!r} is {self._spec.ranks}; "
                f"use ranks from 0 to {self._spec.ranks - 1}"
            )

    async def version(self, step: int, deadline: float) -> WeightsVersion:
        """Returns the version that scores `step`, once it is trained.

        Raises:
            DeadlineExceededError: it was not by `deadline` (loop time); says what is missing.
            StepsNotKeptError: it expired long ago.
            FailedPreconditionError: it cannot be trained.
        """
        number = version_for(self._spec, step)
        await self._reach(number, deadline)
        if number not in self._versions:
            try:
                self._versions[number] = await asyncio.to_thread(self._weights.version, self._run_id, "learner", number)
            except WeightsNotFoundError as error:
                raise StepsNotKeptError(
                    f"step {step} of run {self._run_id!r} is scored under learner version {number}, which expired; "
                    "go on at a later step, or begin another run"
                ) from error
        return self._versions[number]

    async def answer(self, handout: Handout, identity: str) -> Answer | None:
        """Returns the answer to a step that is trained on; None where it is not.

        Raises:
            StepExistsError: another super-batch was offered as that step.
            StepsNotKeptError: its answer is not kept any more.
        """
        if not await self._is_trained(handout):
            return None
        return self._same(handout, identity, await self._known_answer(handout))

    async def hand_out(
        self, handout: Handout, rows: Mapping[Reader, Columns], answer: Answer, deadline: float
    ) -> Answer:
        """Puts a sub-batch into the journal, durably; returns its answer, or the one that was given before.

        Raises:
            StepExistsError: another super-batch was offered as that step.
            TooLargeError: a block of such sub-batches exceeds the journal.
            OverloadedError: so many wait to be trained on that the journal is full until `deadline`.
            RunNotFoundError: the run was deleted.
            DiskFullError, UnavailableError: the store does not take it.
        """
        content = await asyncio.to_thread(entry_content, handout, rows, answer)
        await self._make_room(handout, len(content), deadline)
        try:
            is_first = await asyncio.to_thread(self._create, handout, content)
        except FileNotFoundError as error:
            raise RunNotFoundError(f"run {self._run_id!r} was deleted; create it again") from error
        if is_first and await self._is_trained(handout):
            # Handed out before, trained on and cleared away, while this answer was worked out.
            await asyncio.to_thread(self._journal.discard, self._folder or "", handout)
            is_first = False
        if not is_first:
            answer = self._same(handout, answer.identity, await self._known_answer(handout))
        self._note_handout(handout, answer)
        return answer

    async def stop(self) -> None:
        """Ends what is under way; what was not committed is trained again by whoever needs it."""
        for task in (self._work, self._clearing):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def end(self) -> None:
        """Does the same without waiting for it."""
        for task in (self._work, self._clearing):
            if task is not None:
                task.cancel()

    # What was handed out

    def _create(self, handout: Handout, content: bytes) -> bool:
        if self._folder is None:
            self._folder = self._journal.open(self._run_id)
        if not self._journal.create(self._folder, handout, content):
            return False
        if not self._is_current():
            self._journal.discard(self._folder, handout)
            raise FileNotFoundError(self._run_id)
        return True

    async def _known_answer(self, handout: Handout) -> Answer:
        answer = self._answers.get(handout) or await asyncio.to_thread(self._journal.answer, self._run_id, handout)
        if answer is None:
            raise StepsNotKeptError(
                f"the answer to step {handout.step} of rank {handout.rank} in run {self._run_id!r} is not kept any "
                "more (co_training.answers_bytes); go on at a later step, or begin another run"
            )
        return answer

    def _same(self, handout: Handout, identity: str, answer: Answer) -> Answer:
        if answer.identity != identity:
            raise StepExistsError(
                f"step {handout.step} of rank {handout.rank} in run {self._run_id!r} was used for other candidates, "
                "which the online model is trained on; resume the loader's state_dict, or use a new run"
            )
        return answer

    async def _is_trained(self, handout: Handout) -> bool:
        """Tells whether the version after `handout` is there, by a look that is younger than rows stay."""
        if time.monotonic() - self._looked_at > _LOOK_S:
            await self._look()
        return block_of(self._spec, handout.step) < block_after(max(1, self._head))

    async def _make_room(self, handout: Handout, entry_bytes: int, deadline: float) -> None:
        """Waits until the blocks that are not trained fit into the journal together with that of `handout`."""
        block_bytes = entry_bytes * self._spec.publish_every * self._spec.ranks
        fitting = self._settings.journal_bytes // block_bytes
        if fitting <= self._spec.lag:
            raise TooLargeError(
                f"a sub-batch of {entry_bytes} bytes makes blocks of {block_bytes} (publish_every "
                f"{self._spec.publish_every}, ranks {self._spec.ranks}), of which {self._spec.lag + 1} have to fit "
                f"into {self._settings.journal_bytes} (co_training.journal_bytes); lower one, or raise the limit"
            )
        try:
            await self._reach(block_of(self._spec, handout.step) + 2 - fitting, deadline)
        except DeadlineExceededError as error:
            raise OverloadedError(f"the journal of run {self._run_id!r} is full: {error}") from error

    def _note_handout(self, handout: Handout, answer: Answer) -> None:
        if handout not in self._answers:
            self._answers[handout] = answer
            self._answers_bytes += answer.total_bytes
        while self._answers_bytes > _ANSWERS_BYTES:
            self._answers_bytes -= self._answers.pop(next(iter(self._answers))).total_bytes
        due = block_after(self._head)
        if block_of(self._spec, handout.step) < due:
            return
        self._handouts.add(handout)
        self._tell()
        # Others may have handed out the rest; that costs a look, so it is asked once for each block.
        is_last = handout.step == first_step_of(self._spec, due + 1) - 1
        if is_last or self._handouts.issuperset(handouts_of(self._spec, due)):
            self._start()

    # Versions

    async def _reach(self, number: int, deadline: float) -> None:
        """Waits until version `number` is committed, and brings it about where nobody else does."""
        loop, pause = asyncio.get_running_loop(), _POLL_S[0]
        while self._head < number:
            if self._failure is not None:
                raise type(self._failure)(*self._failure.args)  # each waiter its own: tracebacks grow on what is raised
            change = self._change
            if self._work is None and time.monotonic() - self._polled_at >= pause:
                self._polled_at = time.monotonic()  # one waiter looks for all
                await self._poll()
                if self._head >= number:
                    return
            left_s = deadline - loop.time()
            if left_s <= 0:
                raise DeadlineExceededError(self._missing(number))
            await asyncio.wait({change}, timeout=min(pause, left_s))
            pause = min(pause * 1.5, _POLL_S[1])

    async def _poll(self) -> None:
        """Looks what other gateways did, and takes over what they do not finish."""
        await self._look()
        if self._head == 0 or await self._is_complete(block_after(self._head)):
            if self._complete_since[0] != self._head:
                self._complete_since = (self._head, time.monotonic())
            patience_s = max(_TAKE_OVER_S, _TAKE_OVER_TIMES * self._last_training_s)
            if time.monotonic() - self._complete_since[1] >= patience_s:
                self._start()

    def _tell(self) -> None:
        """Wakes whoever waits."""
        change, self._change = self._change, asyncio.get_running_loop().create_future()
        change.set_result(None)

    def _missing(self, number: int) -> str:
        block = block_after(self._head)
        waits = f"learner version {number} of run {self._run_id!r} is not trained in time"
        if self._head == 0:
            return f"{waits}: no scorer has made the untrained model yet"
        lacking = sorted(set(handouts_of(self._spec, block)) - self._handouts)
        if lacking:
            return (
                f"{waits}: it is trained on step {lacking[0].step} of rank {lacking[0].rank}, which was not handed "
                "out; offer every step from co_training.first_step on, by every rank"
            )
        return f"{waits}: scorers are still at it; add scorers, raise the run's deadline_s, or give it more lag"

    def _start(self) -> None:
        self._is_asked = True
        if self._work is None and self._failure is None:
            self._work = asyncio.create_task(self._train_on())

    async def _train_on(self) -> None:
        """Trains block after block for as long as they are complete."""
        try:
            while self._is_asked:
                self._is_asked = False  # set again by what is handed out while this looks
                while self._head == 0 or await self._is_complete(block_after(self._head)):
                    await self._advance_to(self._head + 1)
        except (PushConflictError, RunNotFoundError):
            logger.info("run %s was deleted while it was trained", self._run_id)
        except FailedPreconditionError as error:
            self._failure = error
        except Exception:
            logger.exception("run %s: learner version %d is not made yet", self._run_id, self._head + 1)
        finally:
            self._work = None
            self._tell()

    async def _advance_to(self, number: int) -> None:
        """Makes the version after the newest one, unless another gateway was faster."""
        block = None if number == 1 else block_after(number - 1)
        try:
            trained = await self._trained(self._training(self._versions.get(number - 1), block))
        except (FileNotFoundError, WeightsNotFoundError):
            await self._look()  # cleared away, because another gateway has trained on it
            if self._head < number:
                raise
            return
        step = self._spec.first_step if block is None else first_step_of(self._spec, block + 1)
        version = _version(number, step, trained)
        committed = await asyncio.to_thread(self._weights.commit_trained, self._run_id, version, self._is_current)
        self._note_version(committed)
        if committed is version:
            self._committed(version, trained, 0 if block is None else self._spec.publish_every)
        self._last_training_s = trained.train_s
        self._clear_now_and_then()

    def _training(self, before: WeightsVersion | None, block: int | None) -> Training:
        def trainee(role: Role, weights: str | None, optimiser: str | None) -> Trainee:
            architecture, config = architecture_of(self._run, role)
            return Trainee(architecture, json.dumps(dict(config), sort_keys=True), weights, optimiser)

        digests: tuple[str | None, ...] = (None, None, None, None)
        if before is not None:
            digests = (
                before.digest,
                before.optimiser_digest,
                before.reference_digest,
                before.reference_optimiser_digest,
            )
        return Training(
            run_id=self._run_id,
            task=self._run.task,
            spec=self._spec,
            online=trainee("learner", *digests[:2]),
            reference=trainee("reference", *digests[2:]) if self._spec.reference_examples else None,
            block=block,
        )

    async def _trained(self, training: Training) -> Trained:
        for pause_s in _RETRY_S:
            try:
                async with asyncio.timeout(self._settings.timeout_s):
                    return await self._pool.train(training)
            except (ScorerLostError, TimeoutError) as error:
                logger.warning("run %s: a scorer was lost while it trained: %r", self._run_id, error)
            await asyncio.sleep(pause_s)
        raise ScorersUnavailableError(f"{len(_RETRY_S)} scorers were lost while they trained run {self._run_id!r}")

    async def _is_complete(self, block: int) -> bool:
        wanted = handouts_of(self._spec, block)
        if not self._handouts.issuperset(wanted):
            found = await asyncio.to_thread(self._journal.handouts, self._run_id)
            self._handouts |= {handout for handout in found if block_of(self._spec, handout.step) >= block}
        return self._handouts.issuperset(wanted)

    async def _look(self) -> None:
        """Reads which versions there are."""
        looked_at = time.monotonic()
        versions = await asyncio.to_thread(self._weights.versions, self._run_id, "learner")
        self._looked_at = looked_at
        for version in versions:
            self._note_version(version)

    def _note_version(self, version: WeightsVersion) -> None:
        self._versions[version.version] = version
        self._seen_at.setdefault(version.version, time.monotonic())
        if version.version > self._head:
            self._head = version.version
            first_untrained = first_step_of(self._spec, block_after(self._head))
            self._handouts = {handout for handout in self._handouts if handout.step >= first_untrained}
            self._tell()
        for known in (self._versions, self._seen_at):
            for number in sorted(known)[:-_VERSIONS_HELD]:
                del known[number]

    # What is cleared away

    def _clear_now_and_then(self) -> None:
        if self._clearing is None and time.monotonic() - self._cleared_at >= _CLEAR_S:
            self._cleared_at = time.monotonic()
            self._clearing = asyncio.create_task(self._clear())

    async def _clear(self) -> None:
        try:
            settled = [number for number, seen in self._seen_at.items() if time.monotonic() - seen >= _CLEAR_S]
            if settled:
                before_step = first_step_of(self._spec, block_after(max(settled)))
                await asyncio.to_thread(
                    self._journal.clear, self._run_id, before_step, self._settings.answers_bytes, self._answers.get
                )
            self._collect()
        except (PreceptorError, OSError) as error:
            logger.warning("run %s: what is trained on was not cleared away: %s", self._run_id, error)
        finally:
            self._clearing = None


def _version(number: int, step: int, trained: Trained) -> WeightsVersion:
    online, reference = trained.online, trained.reference
    return WeightsVersion(
        number,
        step,
        online.weights,
        online.weights_bytes,
        time.time(),
        online.optimiser,
        reference_digest=reference.weights if reference else None,
        reference_bytes=reference.weights_bytes if reference else None,
        reference_optimiser_digest=reference.optimiser if reference else None,
    )
