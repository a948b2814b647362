"""`SelectionClient` and `Run`: what a trainer holds. A façade over the stream, the weights and the plain calls."""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any

from preceptor import batches, memory_bank, weights
from preceptor.answers import PushedWeights, Remembered, RunStatus, Sampled, Scores, Selection
from preceptor.channel import Connection, Tls
from preceptor.decoding import scores_from_proto, spec_of, status_from_proto
from preceptor.errors import DeadlineExceededError
from preceptor.fallback import Fallback
from preceptor.ledger import LedgerExport, export_ledger, read_ledger
from preceptor.reference_card import Card, card_to_proto
from preceptor.reported_metrics import MetricSeries, list_metrics, report_metrics
from preceptor.runs import RunSpec, spec_to_proto
from preceptor.stream import SelectStream
from preceptor.tracing import traced_select
from preceptor.v1 import ledger_pb2, memory_bank_pb2, run_pb2, selection_pb2, weights_pb2
from preceptor.wire import CHUNK_BYTES, with_chunk

GRACE_S = 5.0
"""The stream settles every future at its deadline; waiting so much longer only guards against its failing to."""


class SelectionClient:
    """A connection to the service at one address.

    Safe to use from any threads of the process that opened it; a fork of that process gets a `RuntimeError`. Every
    method blocks at most `timeout_s` and raises nothing but `PreceptorError`, or `ValueError`/`TypeError` for an
    argument that cannot be sent. Opening does not connect; the first call does.

    Args:
        target: `"host:port"` of a gateway, or of whatever balances between several.
        token: sent as a bearer token; needs `tls` unless the host is this machine. A function that returns it is
            asked before each call, from any thread: for tokens that end sooner than a training run. It must not block.
        tls: None for plaintext.
        timeout_s: default for every call.

    Raises:
        ValueError: `target` is not `"host:port"`, `timeout_s` is not above 0, a token would travel unencrypted, or has
            characters that no header carries, such as a line end.
    """

    def __init__(
        self, target: str, token: str | Callable[[], str] | None = None, tls: Tls | None = None, timeout_s: float = 30.0
    ) -> None:
        self._timeout_s = _checked_timeout(timeout_s)
        self._connection = Connection(target, token, tls, self._timeout_s)
        self._lock = threading.Lock()
        # By run id and the time of its creation: a deleted run's name may come to life again, as another run.
        self._streams: dict[str, tuple[tuple[int, int], SelectStream]] = {}

    def is_serving(self, timeout_s: float | None = None) -> bool:
        """Tells whether the gateway takes work; False while it drains. Needs no token.

        Raises:
            UnavailableError: nobody answers at the target.
        """
        return self._connection.is_serving(self._timeout_s if timeout_s is None else _checked_timeout(timeout_s))

    def create_run(self, spec: RunSpec) -> Run:
        """Creates a run and returns its handle; the same spec again gives the existing run.

        Repeated while the service is unavailable, so a trainer may start while a gateway is being replaced.

        Raises:
            RunExistsError: the run exists with another spec.
            InvalidRunError: a setting is out of range or names something unknown.
            UnavailableError: no gateway was reached in the client's `timeout_s`.
        """
        request = selection_pb2.CreateRunRequest(spec=spec_to_proto(spec))
        response = self._connection.repeated_unary(
            "CreateRun",
            lambda: request,
            selection_pb2.CreateRunResponse,
            self._timeout_s,
            f"run {spec.run_id!r} was not created",
        )
        return self._run(response.run)

    def get_run(self, run_id: str) -> Run:
        """Returns the handle of an existing run; repeated while the service is unavailable, as `create_run`.

        Raises:
            RunNotFoundError: no such run.
            UnavailableError: no gateway was reached in the client's `timeout_s`.
        """
        request = selection_pb2.GetRunRequest(run_id=run_id)
        response = self._connection.repeated_unary(
            "GetRun",
            lambda: request,
            selection_pb2.GetRunResponse,
            self._timeout_s,
            f"run {run_id!r} was not read",
        )
        return self._run(response.run)

    def list_runs(self) -> list[RunStatus]:
        """Returns the state of every run that the caller may score, by run id.

        A run that this gateway has not served since it started comes as it is stored, with no `last_step`.
        """
        response = self._connection.unary(
            "ListRuns", selection_pb2.ListRunsRequest(), selection_pb2.ListRunsResponse, self._timeout_s
        )
        return [status_from_proto(run) for run in response.runs]

    def delete_run(self, run_id: str) -> None:
        """Deletes a run and its weights. What is pending of it fails with `ClosedError` or `RunNotFoundError`.

        Raises:
            RunNotFoundError: no such run.
        """
        request = selection_pb2.DeleteRunRequest(run_id=run_id)
        self._connection.unary("DeleteRun", request, selection_pb2.DeleteRunResponse, self._timeout_s)
        with self._lock:
            _, stream = self._streams.pop(run_id, (None, None))
        if stream is not None:
            stream.close("was deleted")

    def close(self) -> None:
        """Fails what is pending with `ClosedError`, ends the threads, and disconnects; repeating it is harmless."""
        with self._lock:
            streams = [stream for _, stream in self._streams.values()]
        for stream in streams:
            stream.close()
        self._connection.close()

    def __enter__(self) -> SelectionClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, message: run_pb2.Run) -> Run:
        spec = spec_of(message)
        life = (message.create_time.seconds, message.create_time.nanos)
        with self._lock:
            # One stream per run, whatever the number of handles: the window is the run's.
            known_life, known = self._streams.get(spec.run_id, (None, None))
            if known is not None and known_life == life:
                stream, former = known, None
            else:
                stream, former = SelectStream(self._connection, spec.run_id, fallback=Fallback.of(spec)), known
                self._streams[spec.run_id] = life, stream
        if former is not None:
            former.close("was deleted and created anew")
        stream.raise_first_step(_first_free_step(message))
        columns = tuple(column.name for column in message.columns)
        return Run(spec, columns, self._connection, stream, self._timeout_s)


class Run:
    """Handle of one run; made by `SelectionClient.create_run` and `get_run`, alive as long as that client.

    Safe to use from any threads. The first `select` or `submit` opens a stream that all of them share. When the run is
    deleted and created anew, its handles remain those of the deleted one, and `select`, `submit` and `score` raise
    `ClosedError` once this client has a handle of the new one.

    Attributes:
        spec: the settings.
        columns: names of the columns of a super-batch, in order.
    """

    def __init__(
        self, spec: RunSpec, columns: tuple[str, ...], connection: Connection, stream: SelectStream, timeout_s: float
    ) -> None:
        self.spec = spec
        self.columns = columns
        self._connection = connection
        self._stream = stream
        self._timeout_s = timeout_s

    @property
    def run_id(self) -> str:
        """Name of the run."""
        return self.spec.run_id

    @property
    def timeout_s(self) -> float:
        """The client's: of every call that names none."""
        return self._timeout_s

    @property
    def own_fallbacks(self) -> int:
        """Super-batches that this client drew uniformly by itself, because no gateway answered.

        The next gateway that does is told, and counts them as `preceptor_fallbacks_total{reason="no_gateway"}`.
        """
        return self._stream.own_fallbacks

    def next_step(self, rank: int = 0) -> int:
        """Returns a step that is free for `rank`, as far as this client knows; 0 for a new run.

        It is above every step that this client submitted for `rank`, and above those of any rank that the service told
        it of when a handle was last made: so a training script that is run again goes on counting, and what it pushes
        is not stale. That is best effort: the highest step answered is of one gateway since it started.
        """
        return self._stream.next_step(rank)

    def status(self) -> RunStatus:
        """Returns the run as the answering gateway sees it.

        Raises:
            RunNotFoundError: the run was deleted.
        """
        request = selection_pb2.GetRunRequest(run_id=self.run_id)
        response = self._connection.unary("GetRun", request, selection_pb2.GetRunResponse, self._timeout_s)
        return status_from_proto(response.run)

    def push_reference(
        self,
        state_dict: Mapping[str, Any],
        timeout_s: float | None = None,
        *,
        fold: int | None = None,
        card: Card | None = None,
    ) -> PushedWeights:
        """Sends the reference model's weights; blocks until they are durable. Arguments and errors as `push_weights`.

        Args:
            state_dict: as `push_weights`.
            timeout_s: default: the client's.
            fold: the half of the data that it was trained on, 0 or 1 as `preceptor.folds.folds_of` says; for runs with
                `cross_reference`, and only for them.
            card: of these weights, as `preceptor train-reference` wrote it: the path of `card.json`, or what it holds.
                The service then compares task, architecture, settings, preprocessing and fold with the run; without it
                it sees the tensors alone, which say nothing of preprocessing.

        Raises:
            ReferenceFrozenError: the run has another reference, of that fold.
            InvalidWeightsError: `fold` is missing, not wanted, or neither 0 nor 1; or the card is of other weights, or
                of a reference that this run would use otherwise than it was trained.
            ValueError: `card` is none.
            OSError: its file cannot be read.
        """
        return weights.push(
            self._connection,
            self.run_id,
            weights_pb2.WEIGHTS_ROLE_REFERENCE,
            state_dict,
            step=0,
            rewind=False,
            timeout_s=self._timeout(timeout_s),
            fold=None if fold is None else _whole("fold", fold),
            card=None if card is None else card_to_proto(card),
        )

    def push_weights(
        self, state_dict: Mapping[str, Any], step: int, rewind: bool = False, timeout_s: float | None = None
    ) -> PushedWeights:
        """Sends the learner's weights as the next learner version; blocks until they are durable.

        Repeated while the service is unavailable; the same weights at the same step are one version. Holds at most one
        tensor's copy in memory. `state_dict` must not change meanwhile.

        Args:
            state_dict: name → numpy array or torch tensor on any device, e.g. `model.state_dict()`.
            step: the trainer's step that they belong to; 0 or above.
            rewind: accepts a step below the committed one, after going back to a checkpoint.
            timeout_s: default: the client's.

        Raises:
            TypeError: `state_dict` is no mapping, e.g. a module, or a value is no array or tensor.
            InvalidWeightsError: a tensor is missing, extra, misshapen, of another type or not finite.
            StaleWeightsError: `step` is older than the committed one and `rewind` is not set.
            PushConflictError: another push was committed meanwhile.
        """
        return weights.push(
            self._connection,
            self.run_id,
            weights_pb2.WEIGHTS_ROLE_LEARNER,
            state_dict,
            step,
            rewind,
            self._timeout(timeout_s),
        )

    def select(
        self,
        batch: Mapping[str, Any],
        sub_batch_size: int,
        step: int,
        rank: int = 0,
        example_id: Any = None,
        timeout_s: float | None = None,
    ) -> Selection:
        """Offers one super-batch and returns which examples to train on; blocks at most `timeout_s`.

        Where the run falls back and no gateway answers, the client draws by itself (`RunSpec.on_deadline`). Arguments
        and errors as `submit`, and:

        Raises:
            InvalidSuperBatchError: the columns do not fit the run, or `sub_batch_size` does not fit the rows.
            WeightsMissingError: learner or reference weights were not pushed yet.
            StepExistsError: the same (step, rank) was used for other candidates.
            TooLargeError: the super-batch is larger than the gateway accepts.
            RuntimeError: called in the callback of a future of this run.
        """
        limit_s = self._timeout(timeout_s)
        self._stream.check_may_wait("select")
        future = self.submit(batch, sub_batch_size, step, rank, example_id, limit_s)
        try:
            return result_of(future, step, rank, limit_s)
        finally:
            # After an answer this does nothing; after a Ctrl-C it gives the super-batch up, so that it can be repeated.
            future.cancel()

    def submit(
        self,
        batch: Mapping[str, Any],
        sub_batch_size: int,
        step: int,
        rank: int = 0,
        example_id: Any = None,
        timeout_s: float | None = None,
    ) -> Future[Selection]:
        """Offers one super-batch and returns the future of its selection; several may be in flight.

        Encodes at once, with one copy, so the arrays may change afterwards. Blocks only while more than the gateway's
        window waits to be sent. When the connection breaks, and where a gateway is unavailable, the super-batch is sent
        again until its deadline. The future fails with a `PreceptorError`; `Future.cancel` gives the super-batch up.

        Callbacks of the future (`Future.add_done_callback`) run on the threads that carry the super-batches of this
        run, and hold them up: they may submit the next one, but not wait for anything.

        Args:
            batch: column name → numpy array or torch tensor on any device, `[B, ...]`.
            sub_batch_size: examples to select, b.
            step: the trainer's step; 0 or above. (step, rank) names the super-batch within the run.
            rank: the trainer's rank; 0 or above.
            example_id: `[B]` whole numbers or texts, stable over the data set; twice only for one example. Default:
                none.
            timeout_s: from here to the answer, reconnects included; default: the client's.

        Raises:
            TypeError, UnsendableSuperBatchError: the batch cannot be encoded; the latter is a `ValueError`, too.
            ValueError: the same (step, rank) is pending, or one of them is below 0.
            DeadlineExceededError, UnavailableError: the window stayed full, or no gateway was reached, in `timeout_s`.
            ClosedError: the client is closed, or the run was deleted; `create_run` or `get_run` gives a new handle.
            RuntimeError: used in a fork of the process that opened the client; called in the callback of a future of
                this run while the window is full; or the process can start no more threads.
        """
        self._connection.check_usable()
        size = _whole("sub_batch_size", sub_batch_size)
        step, rank = _from_zero("step", step), _from_zero("rank", rank)
        encoded = batches.encode(batch, example_id)
        return traced_select(
            partial(self._stream.submit, encoded, size, step, rank, self._timeout(timeout_s)),
            self.run_id,
            step,
            rank,
            encoded.row_count,
            size,
        )

    def score(self, batch: Mapping[str, Any], example_id: Any = None, timeout_s: float | None = None) -> Scores:
        """Returns losses and scores of one super-batch and selects nothing. Arguments and errors as `select`."""
        self._connection.check_usable()
        self._stream.check_open()
        encoded = batches.encode(batch, example_id)
        header = selection_pb2.ScoreHeader(
            run_id=self.run_id,
            row_count=encoded.row_count,
            body_bytes=len(encoded.body),
            observed_learner_version=self._stream.observed_learner_version,
        )
        response = self._connection.unary(
            "Score", _score_requests(header, encoded.body), selection_pb2.ScoreResponse, self._timeout(timeout_s)
        )
        scores = scores_from_proto(response)
        self._stream.observe(scores.learner_version)
        return scores

    def remember(
        self,
        batch: Mapping[str, Any],
        example_id: Any,
        step: int,
        rank: int = 0,
        timeout_s: float | None = None,
    ) -> Remembered:
        """Scores one super-batch and puts it into the run's memory bank, for runs with `RunSpec.memory_bank`.

        Blocks until that is durable. (step, rank) names it: a repeat gets the first answer and puts nothing in, and it
        is repeated here while the service is unavailable. Steps of `remember` are apart from those of `sample` and
        `select`. An example that the bank holds gets the new score and stamp. Call it from any thread, e.g. one that
        runs ahead of the training.

        Args:
            batch: as `submit`; at most as many candidates as the bank has room for.
            example_id: `[B]` whole numbers, or texts of 1 to 128 bytes as UTF-8; all different.
            step: 0 or above.
            rank: 0 to 65535.
            timeout_s: default: the client's.

        Raises:
            TypeError, UnsendableSuperBatchError: the batch cannot be encoded.
            InvalidSuperBatchError: the columns do not fit the run, an id comes twice, or there are too many candidates.
            BankOffError: the run has no memory bank.
            StepExistsError: the same (step, rank) was used for other candidates.
            StepForgottenError: the bank no longer knows whether that step was put in.
            WeightsMissingError: learner or reference weights were not pushed yet.
            UnavailableError, DeadlineExceededError: it may be in the bank; repeat it to know.
        """
        self._connection.check_usable()
        self._stream.check_open()
        encoded = batches.encode(batch, example_id)
        header = memory_bank_pb2.RememberHeader(
            run_id=self.run_id,
            step=_whole("step", step),
            rank=_whole("rank", rank),
            observed_learner_version=self._stream.observed_learner_version,
        )
        remembered = memory_bank.remember(self._connection, header, encoded, self._timeout(timeout_s))
        self._stream.observe(remembered.learner_version)
        return remembered

    def sample(
        self, sub_batch_size: int, step: int, rank: int = 0, wait_s: float = 0.0, timeout_s: float | None = None
    ) -> Sampled:
        """Samples a sub-batch from the run's memory bank by its selector, without replacement; returns ids and scores.

        (step, rank) names it: a repeat gets the same examples. Blocks until that is durable, so that what was sampled
        once is not sampled again after a crash.

        Args:
            sub_batch_size: examples to sample, b.
            step: the trainer's step; 0 or above.
            rank: the trainer's rank, 0 to 65535.
            wait_s: how long to wait while the bank holds too few; it is asked again now and then.
            timeout_s: for each answer; default: the client's.

        Raises:
            BankShortError: the bank holds fewer examples that are not too stale; nothing was taken from it.
            BankOffError: the run has no memory bank.
            InvalidSuperBatchError: `sub_batch_size` is below 1 or above the bank's capacity.
            StepExistsError: the same (step, rank) was used for another `sub_batch_size`.
            StepForgottenError: the bank no longer knows what that step got.
            UnavailableError, DeadlineExceededError: it may have been sampled; repeat it to get it.
        """
        if not 0 <= wait_s <= threading.TIMEOUT_MAX:
            raise ValueError(f"wait_s is {wait_s}; it must be 0 or above, and finite")
        request = memory_bank_pb2.SampleBankRequest(
            run_id=self.run_id,
            step=_whole("step", step),
            rank=_whole("rank", rank),
            sub_batch_size=_whole("sub_batch_size", sub_batch_size),
        )
        return memory_bank.sample(self._connection, request, wait_s, self._timeout(timeout_s))

    def ledger(self, from_step: int | None = None, to_step: int | None = None, timeout_s: float | None = None) -> Any:
        """Returns what super-batches were drawn from and a memory bank did, for runs with `RunSpec.ledger`.

        Args:
            from_step: first step; None: the first that is kept.
            to_step: last step, included; None: the last that is kept.
            timeout_s: for all of it; default: the client's.

        Returns:
            A `pyarrow.Table` with one row per answered super-batch, `remember` and `sample`, and the columns of
            `preceptor.ledger.SCHEMA`, about in the order of time; `preceptor.ledger.per_candidate` unfolds it. All of
            it is in memory: for a long run ask for a range, or `export_ledger`.

        Raises:
            ValueError: the range ends before it begins, or starts below 0.
            LedgerOffError: the run keeps no ledger.
            StepsNotKeptError: a range was given, and none of its steps is kept.
            RunNotFoundError: the run was deleted.
        """
        request = self._ledger_request(from_step, to_step)
        return read_ledger(self._connection, request, self._timeout(timeout_s))

    def export_ledger(
        self,
        path: str | os.PathLike[str],
        from_step: int | None = None,
        to_step: int | None = None,
        timeout_s: float | None = None,
    ) -> LedgerExport:
        """Writes the same to a new Parquet file, which `preceptor ledger replay` reads. Holds little of it in memory.

        Arguments and errors as `ledger`, and:

        Raises:
            FileExistsError: there is something at `path`.
            StepsNotKeptError: there is nothing to write.
            OSError: the file cannot be written.
        """
        request = self._ledger_request(from_step, to_step)
        return export_ledger(self._connection, request, path, self._timeout(timeout_s))

    def report_metrics(self, step: int, values: Mapping[str, float], timeout_s: float | None = None) -> None:
        """Tells the service what you measured, for `preceptor report`; blocks until it is durable, a few milliseconds.

        Repeated while the service is unavailable. What is reported last of a name and step counts, so that a trainer
        that goes back to a checkpoint may report again. At most 64 names and 20,000 values per run.

        Args:
            step: as of `push_weights`: what was measured was trained on the steps below it, `SelectingLoader.step`.
            values: name → number, e.g. `{"test_accuracy": 0.87}`. Of names with loss, error or perplexity in them less
                is taken to be better. Names match `[A-Za-z][A-Za-z0-9_./-]{0,63}`.
            timeout_s: default: the client's.

        Raises:
            InvalidMetricsError: a name is none, or a value is not finite.
            ResourceExhaustedError: the run has too many names or values.
            RunNotFoundError: the run was deleted.
            UnavailableError: no gateway took it within `timeout_s`.
        """
        checked = {name: float(value) for name, value in values.items()}
        report_metrics(self._connection, self.run_id, _whole("step", step), checked, self._timeout(timeout_s))

    def metrics(self, timeout_s: float | None = None) -> dict[str, MetricSeries]:
        """Returns what was reported of the run, by name.

        Raises:
            RunNotFoundError: the run was deleted.
        """
        return list_metrics(self._connection, self.run_id, self._timeout(timeout_s))

    def _ledger_request(self, from_step: int | None, to_step: int | None) -> ledger_pb2.ReadLedgerRequest:
        first = None if from_step is None else _whole("from_step", from_step)
        last = None if to_step is None else _whole("to_step", to_step)
        if (first or 0) < 0 or (last is not None and last < (first or 0)):
            raise ValueError(f"steps {first} to {last} were asked for; the range starts at 0 and ends after it begins")
        return ledger_pb2.ReadLedgerRequest(run_id=self.run_id, from_step=first, to_step=last)

    def _timeout(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else _checked_timeout(timeout_s)


def result_of(future: Future[Selection], step: int, rank: int, timeout_s: float) -> Selection:
    """Waits for what `Run.submit` returned for `step` and `rank`, asked with `timeout_s`.

    Raises:
        DeadlineExceededError: it was not settled, though its time is over.
        PreceptorError: what it was settled with.
    """
    try:
        return future.result(timeout_s + GRACE_S)
    except TimeoutError:
        raise DeadlineExceededError(
            f"no selection for step {step}, rank {rank} within {timeout_s:g} s, nor a reason"
        ) from None


def _checked_timeout(timeout_s: float) -> float:
    if not 0 < timeout_s <= threading.TIMEOUT_MAX:
        raise ValueError(f"timeout_s is {timeout_s}; it must be above 0, and finite")
    return timeout_s


def _whole(name: str, value: int) -> int:
    """Returns `value` as the contract's int64, also from numpy's integers."""
    number = operator.index(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name} is {number}; it must fit in 64 bits")
    return number


def _from_zero(name: str, value: int) -> int:
    number = _whole(name, value)
    if number < 0:
        raise ValueError(f"{name} is {number}; it must be 0 or above")
    return number


def _first_free_step(message: run_pb2.Run) -> int:
    """Returns the least step that neither asks again what was answered nor is older than the learner's weights."""
    above_answered = message.last_step + 1 if message.HasField("last_step") else 0
    return max(above_answered, message.learner_step)


def _score_requests(header: selection_pb2.ScoreHeader, body: memoryview) -> Iterator[selection_pb2.ScoreRequest]:
    yield selection_pb2.ScoreRequest(header=header)
    for offset in range(0, len(body), CHUNK_BYTES):
        data = bytes(body[offset : offset + CHUNK_BYTES])
        yield with_chunk(selection_pb2.ScoreRequest(), offset, data)
