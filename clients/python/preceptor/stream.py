"""The Select stream of one run: credit window, resume, deadlines. The only threads of the client live here.

Each `SelectStream` has, from its first submission until `close`:

* one *keeper* thread, which opens the stream, opens it again after a break, and fails what is past its deadline;
* one *reader* thread per open stream, which takes the answers;
* the thread in which gRPC pulls the requests (`_requests`).

They meet in one condition, `_changed`, which guards every attribute. Futures are settled outside of it, for their
callbacks may call back. Where keeper or reader itself fails, so does what is pending, and nobody waits for ever.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import grpc

from preceptor.answers import Selection
from preceptor.batches import EncodedBatch
from preceptor.channel import Connection, RpcFailure, backoff_s, retry_s, rpc_failure
from preceptor.decoding import selection_from_proto
from preceptor.errors import (
    ClosedError,
    DeadlineExceededError,
    GatewayDrainingError,
    InternalError,
    OverloadedError,
    PreceptorError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    error_from,
)
from preceptor.fallback import Fallback
from preceptor.in_flight import Attempt, Offer, Settlements, StepKey
from preceptor.retry_budget import RetryBudget
from preceptor.runs import seconds
from preceptor.v1 import selection_pb2
from preceptor.wire import with_chunk

OPEN_TIMEOUT_S = 10.0
"""How long a gateway may take to answer SelectOpen before the stream is opened anew."""
CLOSE_TIMEOUT_S = 5.0
"""How long `close` waits for the threads."""

# How much may be queued before a gateway has named its window.
_FIRST_WINDOW_BYTES = 64 * 1024 * 1024
# Every change notifies; this only bounds what a missed notification could cost.
_WAIT_S = 30.0

_log = logging.getLogger("preceptor")


class _Thread(threading.local):
    """What is known of the thread that asks."""

    is_own = False  # one of the stream's, which has to come back from a callback before anything goes on


class SelectStream:
    """Sends super-batches of one run and settles their futures; shared by any threads of one process.

    Memory held: the bodies that are not answered yet, unsent ones up to the gateway's window or one body, sent ones up
    to the window, and the body sent last. A break turns sent ones into unsent ones.

    Args:
        connection: to the gateway.
        run_id: the run.
        first_step: what `next_step` is at least.
        fallback: draws what no gateway answers; None: it fails.
    """

    def __init__(
        self, connection: Connection, run_id: str, first_step: int = 0, fallback: Fallback | None = None
    ) -> None:
        self._connection = connection
        self._run_id = run_id
        self._first_step = first_step
        self._fallback = fallback
        self._changed = threading.Condition()
        self._thread = _Thread()
        self._pending: dict[StepKey, Offer] = {}
        self._unsent: dict[StepKey, Offer] = {}
        self._unsent_bytes = 0
        self._window_bytes = _FIRST_WINDOW_BYTES
        self._attempt: Attempt | None = None
        self._breaks = 0
        self._open_at = 0.0
        self._send_at = 0.0
        self._retries = RetryBudget()
        self._last_failure: RpcFailure | None = None
        self._alive_at = -math.inf  # when a gateway last said something, or took a piece of a body
        self._is_alone = False
        self._own_fallbacks = 0
        self._told_fallbacks = 0
        self._observed_learner_version: int | None = None
        self._next_steps: dict[int, int] = {}
        self._keeper: threading.Thread | None = None
        self._is_closed = False
        self._deletion: str | None = None

    # Called by the trainer's threads.

    @property
    def observed_learner_version(self) -> int | None:
        """Highest learner version in any answer of this run so far."""
        with self._changed:
            return self._observed_learner_version

    @property
    def own_fallbacks(self) -> int:
        """Super-batches that were drawn here, because no gateway answered."""
        with self._changed:
            return self._own_fallbacks

    def next_step(self, rank: int) -> int:
        """One above the highest step submitted for `rank`, and at least the first step."""
        with self._changed:
            return max(self._first_step, self._next_steps.get(rank, 0))

    def raise_first_step(self, step: int) -> None:
        """Makes `next_step` at least `step`, for every rank."""
        with self._changed:
            self._first_step = max(step, self._first_step)

    def check_open(self) -> None:
        """Raises `ClosedError` if nothing more can be asked here."""
        with self._changed:
            self._check_open()

    def check_may_wait(self, what: str) -> None:
        """Raises `RuntimeError` in a future's callback on a thread of the stream, which must not wait for itself."""
        if self._thread.is_own:
            raise RuntimeError(
                f"{what} in the callback of a future of run {self._run_id!r} would wait for the thread that it is "
                "called in; call it from a thread of your own"
            )

    def observe(self, learner_version: int | None) -> None:
        """Takes note of the learner version in an answer that came by another call."""
        with self._changed:
            self._observe(learner_version)

    def submit(
        self,
        batch: EncodedBatch,
        sub_batch_size: int,
        step: int,
        rank: int,
        timeout_s: float,
        traceparent: str | None = None,
    ) -> Future[Selection]:
        """Queues one super-batch and returns its future; `Future.cancel` gives it up.

        Blocks, at most `timeout_s`, while the bytes queued and unsent exceed the gateway's window. `timeout_s` counts
        from here to the answer, reconnects included. `traceparent` goes into the header. With a `Fallback` the future
        gets its draw where it would fail for want of time.

        Raises:
            ValueError: the same (step, rank) is pending.
            DeadlineExceededError: the window stayed full for `timeout_s`.
            OverloadedError: the gateway refused it, or the stream, for `timeout_s`.
            UnavailableError: no gateway was reached in `timeout_s`.
            ClosedError: the client is closed, or the run was deleted.
            RuntimeError: called in a fork of the process that opened the client; in a future's callback while the
                window is full; or there are no threads left.
        """
        self._connection.check_usable()
        deadline = time.monotonic() + timeout_s
        offer = Offer(StepKey(step, rank), batch, sub_batch_size, timeout_s, deadline, traceparent)
        body_bytes = len(batch.body)
        with self._changed:
            self._check_accepts(offer.key)
            while self._unsent and self._unsent_bytes + body_bytes > self._window_bytes:
                self.check_may_wait("submit with a full window")
                remaining_s = self._due_at(offer) - time.monotonic()
                if remaining_s <= 0:
                    return self._settled_late(offer)
                self._changed.wait(remaining_s)
                self._check_accepts(offer.key)
            self._start_keeper()
            self._pending[offer.key] = offer
            self._next_steps[rank] = max(step + 1, self._next_steps.get(rank, 0))
            self._line_up(offer)
            self._changed.notify_all()
        key = offer.key
        # Not a closure over the offer: that would be a cycle, and keep its body until the garbage collector runs.
        offer.future.add_done_callback(lambda future: self._give_up(key, future))
        return offer.future

    def close(self, deletion: str | None = None) -> None:
        """Fails what is pending with `ClosedError` and ends the threads; repeating it is harmless.

        Args:
            deletion: what became of the run, e.g. `"was deleted"`, where that is why; default: the client closes.
        """
        if not self._connection.is_own_process:
            return
        settlements = Settlements()
        with self._changed:
            if not self._is_closed:
                self._is_closed, self._deletion = True, deletion
            closed = self._closed(f"the client was closed before run {self._run_id!r} had its answer")
            attempt, self._attempt = self._attempt, None
            if attempt is not None:
                attempt.end(RpcFailure(closed, is_transport=False))
            self._fail_pending(closed, settlements)
            self._changed.notify_all()
        settlements.tell()
        for thread in (self._keeper, attempt.reader if attempt is not None else None):
            if thread is not None and thread is not threading.current_thread():
                thread.join(CLOSE_TIMEOUT_S)

    def _closed(self, otherwise: str) -> ClosedError:
        if self._deletion is None:
            return ClosedError(otherwise)
        return ClosedError(
            f"run {self._run_id!r} of this handle {self._deletion}; create_run or get_run gives a handle that works"
        )

    def _check_open(self) -> None:
        if self._is_closed:
            raise self._closed(f"the stream of run {self._run_id!r} is closed; open a new SelectionClient")

    def _check_accepts(self, key: StepKey) -> None:
        self._check_open()
        if key in self._pending:
            raise ValueError(f"{key} of run {self._run_id!r} is pending; wait for its answer, or use another step")

    def _line_up(self, offer: Offer) -> None:
        attempt = self._attempt
        earlier = attempt.sent.get(offer.key) if attempt is not None and not attempt.is_over else None
        if attempt is not None and earlier is not None:
            if earlier.asks_the_same_as(offer):
                # Given up before its answer came, and asked again: that answer is the one wanted.
                attempt.sent[offer.key] = offer
                return
            # An answer names only (step, rank), so on this stream nobody could tell which question it answers.
            attempt.end(RpcFailure(UnavailableError(f"{offer.key} was asked anew, otherwise"), is_transport=True))
        self._unsent[offer.key] = offer
        self._unsent_bytes += offer.body_bytes

    def _start_keeper(self) -> None:
        if self._keeper is None:
            keeper = threading.Thread(target=self._keep, name=f"preceptor-keeper-{self._run_id}", daemon=True)
            keeper.start()
            self._keeper = keeper

    def _give_up(self, key: StepKey, future: Future[Selection]) -> None:
        with self._changed:
            offer = self._pending.get(key)
            if offer is not None and offer.future is future and future.cancelled():
                self._forget(offer)
                self._changed.notify_all()

    # Called with the condition held.

    def _forget(self, offer: Offer) -> None:
        self._pending.pop(offer.key, None)
        if self._unsent.pop(offer.key, None) is not None:
            self._unsent_bytes -= offer.body_bytes

    def _fail_pending(self, error: PreceptorError, settlements: Settlements) -> None:
        for offer in list(self._pending.values()):
            self._forget(offer)
            # Each future its own exception: tracebacks grow on the one that is raised.
            settlements.add(offer, type(error)(*error.args))

    def _due_at(self, offer: Offer) -> float:
        """Returns when waiting for an answer ends, as things are."""
        if self._fallback is None:
            return offer.deadline
        return min(offer.deadline, self._silent_since(offer) + self._fallback.patience_s(self._is_alone))

    def _silent_since(self, offer: Offer) -> float:
        # A gateway that says of this one that it cannot is as good as none.
        is_refused = isinstance(offer.setback, UnavailableError)
        return offer.asked_at if is_refused else max(offer.asked_at, self._alive_at)

    def _settled_late(self, offer: Offer) -> Future[Selection]:
        outcome = self._late(offer)
        if isinstance(outcome, PreceptorError):
            raise outcome
        offer.future.set_result(outcome)
        return offer.future

    def _late(self, offer: Offer) -> Selection | PreceptorError:
        """Returns what becomes of an offer whose time is over."""
        drawn = self._fallback.drawn(offer) if self._fallback is not None else None
        if drawn is None:
            return self._too_late(offer)
        if not self._is_alone:
            _log.warning(
                "%s of run %s is drawn uniformly here, as all until a gateway answers: none did for %.1f s",
                *(offer.key, self._run_id, time.monotonic() - self._silent_since(offer)),
            )
        self._is_alone = True
        self._own_fallbacks += 1
        return drawn

    def _too_late(self, offer: Offer) -> PreceptorError:
        asked = f"{offer.key} of run {self._run_id!r}"
        is_open = self._attempt is not None and self._attempt.opened is not None and not self._attempt.is_over
        last = None if is_open or self._last_failure is None else self._last_failure.error
        setback = last if isinstance(last, OverloadedError) else offer.setback
        if isinstance(setback, OverloadedError):
            return OverloadedError(
                f"{asked} found no place within {offer.timeout_s:g} s; last: {setback}",
                retry_after_s=setback.retry_after_s,
            )
        if is_open and setback is not None:
            return UnavailableError(f"{asked} was not answered within {offer.timeout_s:g} s; last: {setback}")
        if is_open:
            return DeadlineExceededError(
                f"no selection for {asked} within {offer.timeout_s:g} s; raise timeout_s, offer fewer candidates, or "
                "give the run a deadline_s with on_deadline='uniform'"
            )
        why = "it did not open the stream" if last is None else last
        return UnavailableError(
            f"no gateway at {self._connection.target} took {asked} within {offer.timeout_s:g} s; last: {why}"
        )

    def _observe(self, learner_version: int | None) -> None:
        if learner_version is not None:
            self._observed_learner_version = max(learner_version, self._observed_learner_version or learner_version)

    # The keeper thread.

    def _keep(self) -> None:
        self._thread.is_own = True
        while True:
            settlements = Settlements()
            try:
                with self._changed:
                    if self._is_closed:
                        return
                    self._keep_up(settlements)
            except BaseException as raised:  # noqa: BLE001 - whoever waits has to hear of it, whatever it is
                with self._changed:
                    self._fail_all(raised, self._attempt, settlements)
            settlements.tell()

    def _keep_up(self, settlements: Settlements) -> None:
        """Does what is due, or waits until something is."""
        now = time.monotonic()
        self._expire(now, settlements)
        self._end_attempt(now, settlements)
        if self._attempt is None and self._pending and now >= self._open_at:
            self._open(now)
        elif not settlements.outcomes:
            self._changed.wait(max(0.0, self._next_event(now) - now))

    def _fail_all(self, raised: BaseException, attempt: Attempt | None, settlements: Settlements) -> None:
        """Fails what is pending where the client itself failed; what comes later finds the stream as if new."""
        _log.error("select stream of run %s: the client failed, and all that is pending", self._run_id, exc_info=raised)
        if attempt is not self._attempt:
            return  # of a stream that is over
        error = InternalError(
            f"the client itself failed with {type(raised).__name__} at the stream of run {self._run_id!r}; its log "
            "says where"
        )
        self._attempt = None
        if attempt is not None:
            attempt.end(RpcFailure(error, is_transport=False))
        self._fail_pending(error, settlements)
        self._changed.notify_all()

    def _next_event(self, now: float) -> float:
        events = [now + _WAIT_S, *(self._due_at(offer) for offer in self._pending.values())]
        if self._attempt is None and self._pending:
            events.append(self._open_at)
        if self._attempt is not None and self._attempt.opened is None:
            events.append(self._attempt.open_deadline)
        return min(events)

    def _expire(self, now: float, settlements: Settlements) -> None:
        for offer in list(self._pending.values()):
            if self._due_at(offer) <= now:
                settlements.add(offer, self._late(offer))
                self._forget(offer)
        if settlements.outcomes:
            self._changed.notify_all()

    def _end_attempt(self, now: float, settlements: Settlements) -> None:
        attempt = self._attempt
        if attempt is None:
            return
        if attempt.opened is None and attempt.open_deadline <= now:
            attempt.end(self._silent())
        if attempt.failure is None:
            return
        self._attempt = None
        self._last_failure = attempt.failure
        # What ended a stream that held nothing of ours cannot be about what came since.
        ended_idle = attempt.opened is not None and not attempt.sent
        retry_after_s = attempt.failure.retry_after_s
        if attempt.failure.is_transport or ended_idle or retry_after_s is not None:
            self._breaks += 1
            self._open_at = now + max(backoff_s(self._breaks), retry_s(retry_after_s or 0.0))
            _log.info("select stream of run %s broke: %s", self._run_id, attempt.failure.error)
            self._unsent = dict(self._pending)
            self._unsent_bytes = sum(offer.body_bytes for offer in self._unsent.values())
        else:
            self._breaks = 0
            self._open_at = now
            self._fail_pending(attempt.failure.error, settlements)
        self._changed.notify_all()

    def _silent(self) -> RpcFailure:
        """Returns why a gateway did not open the stream: what was the matter before, where nothing came of waiting."""
        if self._breaks and self._last_failure is not None and self._last_failure.is_transport:
            return self._last_failure
        said_nothing = f"{self._connection.target} did not answer SelectOpen in {OPEN_TIMEOUT_S:g} s"
        return RpcFailure(UnavailableError(said_nothing), is_transport=True)

    def _open(self, now: float) -> None:
        attempt = Attempt(open_deadline=now + OPEN_TIMEOUT_S)
        try:
            # After a break it is there as soon as a gateway is, and costs nothing until then. The first says why not.
            attempt.call = self._connection.stream(
                "Select", self._requests(attempt), waits_for_connection=self._breaks > 0
            )
        except ClosedError:
            # The connection went first; close() of this stream follows and settles everything.
            self._open_at = now + _WAIT_S
            return
        except UnauthenticatedError as error:
            # The trainer's own function has no token just now.
            self._last_failure = RpcFailure(error, is_transport=True)
            self._breaks += 1
            self._open_at = now + backoff_s(self._breaks)
            return
        self._attempt = attempt
        name = f"preceptor-reader-{self._run_id}"
        reader = threading.Thread(target=self._read, args=(attempt,), name=name, daemon=True)
        reader.start()
        attempt.reader = reader

    # gRPC's thread that pulls requests.

    def _requests(self, attempt: Attempt) -> Iterator[selection_pb2.SelectRequest]:
        self._thread.is_own = True
        observed = self.observed_learner_version
        yield selection_pb2.SelectRequest(
            open=selection_pb2.SelectOpen(run_id=self._run_id, observed_learner_version=observed)
        )
        while (offer := self._next_offer(attempt)) is not None:
            body = offer.batch.body
            yield selection_pb2.SelectRequest(
                super_batch=selection_pb2.SuperBatchHeader(
                    step=offer.key.step,
                    rank=offer.key.rank,
                    sub_batch_size=offer.sub_batch_size,
                    row_count=offer.batch.row_count,
                    body_bytes=len(body),
                    digest=offer.batch.digest,
                    traceparent=offer.traceparent,
                    client_fallbacks=self._untold_fallbacks(attempt, offer.key),
                )
            )
            offset = 0
            # Once announced, a body is sent to its end even when nobody waits for the answer any more.
            while offset < len(body):
                size = self._take_credit(attempt, len(body), offset)
                if size == 0:
                    return
                yield with_chunk(selection_pb2.SelectRequest(), offset, bytes(body[offset : offset + size]))
                offset += size

    def _untold_fallbacks(self, attempt: Attempt, key: StepKey) -> int:
        """Returns how many own draws the header of `key` is to tell of; 0 until a gateway has spoken again.

        They are told once that super-batch is answered or refused, and after a break they are told anew. So none is
        lost with a gateway; one that had read the header and lives on, while the connection broke before its answer,
        counts them and so does the next.
        """
        with self._changed:
            if self._is_alone:
                return 0
            untold = self._own_fallbacks - self._told_fallbacks - sum(attempt.telling.values())
            if untold:
                attempt.telling[key] = untold
            return untold

    def _next_offer(self, attempt: Attempt) -> Offer | None:
        """Waits for a super-batch whose first chunk may go at once; None when the stream is over."""
        while True:
            settlements = Settlements()
            with self._changed:
                offer = self._wait_for_offer(attempt, settlements)
            settlements.tell()
            if offer is not None or attempt.is_over:
                return offer

    def _wait_for_offer(self, attempt: Attempt, settlements: Settlements) -> Offer | None:
        while not attempt.is_over:
            now = time.monotonic()
            if attempt.opened is not None and (offer := self._next_unsent(now)) is not None:
                body_bytes = offer.body_bytes
                if body_bytes > attempt.largest_body():
                    self._forget(offer)
                    self._changed.notify_all()
                    settlements.add(offer, _too_large(offer, attempt.largest_body()))
                    return None
                if attempt.chunk_bytes(body_bytes, 0):
                    if offer.setback is None:
                        self._retries.earn(now)
                    elif isinstance(offer.setback, OverloadedError):
                        self._retries.spend(now)
                    del self._unsent[offer.key]
                    self._unsent_bytes -= body_bytes
                    attempt.sent[offer.key] = offer
                    self._changed.notify_all()
                    return offer
            self._changed.wait(self._next_send_s(now))
        return None

    def _next_unsent(self, now: float) -> Offer | None:
        """Returns the first that may be sent at `now`."""
        if now < self._send_at:
            return None
        return next((offer for offer in self._unsent.values() if self._sendable_at(offer, now) <= now), None)

    def _sendable_at(self, offer: Offer, now: float) -> float:
        """Returns when it may be sent by itself: what was refused waits for its turn, and for the budget."""
        if isinstance(offer.setback, OverloadedError):
            return max(offer.send_at, self._retries.ready_at(now))
        return offer.send_at

    def _next_send_s(self, now: float) -> float:
        """Returns how long to wait for another to become sendable by time alone, in seconds."""
        events = [max(self._send_at, self._sendable_at(offer, now)) for offer in self._unsent.values()]
        # What might go now waits for credit, and that notifies.
        return min([_WAIT_S, *(event - now for event in events if event > now)])

    def _take_credit(self, attempt: Attempt, body_bytes: int, offset: int) -> int:
        """Waits for the credit of the next chunk and returns its size; 0 when the stream is over."""
        with self._changed:
            while not attempt.is_over:
                size = attempt.chunk_bytes(body_bytes, offset)
                if size:
                    attempt.credit_bytes -= size
                    self._alive_at = time.monotonic()
                    return size
                self._changed.wait(_WAIT_S)
        return 0

    # The reader thread.

    def _read(self, attempt: Attempt) -> None:
        self._thread.is_own = True
        try:
            failure = self._read_to_end(attempt)
        except BaseException as raised:  # noqa: BLE001 - whoever waits has to hear of it, whatever it is
            settlements = Settlements()
            with self._changed:
                self._fail_all(raised, attempt, settlements)
            settlements.tell()
            return
        with self._changed:
            attempt.end(failure)
            self._changed.notify_all()

    def _read_to_end(self, attempt: Attempt) -> RpcFailure:
        """Takes every response and returns how the stream ended."""
        what = f"Select to {self._connection.target}"
        try:
            for response in attempt.call:
                settlements = Settlements()
                with self._changed:
                    if not attempt.is_over:
                        self._alive_at, self._is_alone = time.monotonic(), False
                        self._take_response(attempt, response, settlements)
                        self._changed.notify_all()
                settlements.tell()
        except grpc.RpcError as raised:
            failure = rpc_failure(raised, what)
            is_outlived = attempt.opened is not None and isinstance(failure.error, UnauthenticatedError)
            if is_outlived and self._connection.renews_token:
                # The stream outlived its token; whether there is a newer one shows when the next stream opens.
                failure = RpcFailure(failure.error, is_transport=True)
            return failure
        return RpcFailure(UnavailableError(f"{what}: the gateway ended the stream"), is_transport=True)

    def _take_response(
        self, attempt: Attempt, response: selection_pb2.SelectResponse, settlements: Settlements
    ) -> None:
        kind = response.WhichOneof("kind")
        if (kind == "opened") != (attempt.opened is None):
            attempt.end(_broken_contract(f"{kind} came {'before' if attempt.opened is None else 'after'} opened"))
        elif kind == "opened":
            self._take_opened(attempt, response.opened)
        elif kind == "credit":
            attempt.credit_bytes += response.credit.bytes
        elif kind == "selection":
            key = StepKey(response.selection.step, response.selection.rank)
            self._take_answer(attempt, key, _decoded(response.selection), settlements)
        elif kind == "failure":
            self._take_failure(attempt, response.failure, settlements)

    def _take_opened(self, attempt: Attempt, opened: selection_pb2.SelectOpened) -> None:
        if min(opened.window_bytes, opened.max_super_batch_bytes, opened.max_chunk_bytes) < 1:
            attempt.end(_broken_contract(f"a limit in SelectOpened is below 1: {opened}"))
            return
        attempt.opened = opened
        attempt.credit_bytes = opened.window_bytes
        self._window_bytes = opened.window_bytes

    def _take_failure(self, attempt: Attempt, failure: selection_pb2.Failure, settlements: Settlements) -> None:
        key = StepKey(failure.step, failure.rank)
        retry_after_s = seconds(failure.retry_after) if failure.HasField("retry_after") else None
        error = error_from(failure.code, failure.reason, failure.message, retry_after_s)
        if isinstance(error, GatewayDrainingError):
            self._answered(attempt, key)
            attempt.end(RpcFailure(error, is_transport=True))
        elif isinstance(error, OverloadedError) and retry_after_s is not None:
            # Until then the stream is silent.
            self._send_at = max(self._send_at, time.monotonic() + retry_s(retry_after_s))
            self._take_back(attempt, key, error)
        elif type(error) is UnavailableError:
            # Not where scorers were lost: those the gateway has tried for as long as this step may take.
            self._breaks = 0
            self._take_back(attempt, key, error)
        else:
            self._take_answer(attempt, key, error, settlements)

    def _take_back(self, attempt: Attempt, key: StepKey, setback: OverloadedError | UnavailableError) -> None:
        """Keeps a super-batch that the gateway could do nothing with just now, to be sent again."""
        offer = self._answered(attempt, key)
        if offer is None:
            return
        offer.setback = setback
        if isinstance(setback, UnavailableError):
            offer.failures += 1
            offer.send_at = time.monotonic() + backoff_s(offer.failures)
        self._unsent = {key: offer, **self._unsent}
        self._unsent_bytes += offer.body_bytes

    def _take_answer(
        self, attempt: Attempt, key: StepKey, outcome: Selection | PreceptorError, settlements: Settlements
    ) -> None:
        self._breaks = 0
        if isinstance(outcome, Selection):
            self._observe(outcome.learner_version)
        offer = self._answered(attempt, key)
        if offer is not None:
            self._forget(offer)
            settlements.add(offer, outcome)

    def _answered(self, attempt: Attempt, key: StepKey) -> Offer | None:
        """Returns what was answered; None where it was given up before this late answer came."""
        self._told_fallbacks += attempt.telling.pop(key, 0)
        offer = attempt.sent.pop(key, None)
        return offer if offer is not None and self._pending.get(key) is offer else None


def _too_large(offer: Offer, limit_bytes: int) -> TooLargeError:
    return TooLargeError(
        f"the super-batch of {offer.key} is {offer.body_bytes} bytes, the gateway takes {limit_bytes}; offer "
        "fewer candidates, or raise max_super_batch_bytes and window_bytes of the gateway"
    )


def _broken_contract(what: str) -> RpcFailure:
    return RpcFailure(InternalError(f"the gateway broke the order of Select: {what}"), is_transport=False)


def _decoded(message: selection_pb2.Selection) -> Selection | InternalError:
    try:
        return selection_from_proto(message)
    except InternalError as error:
        return error
