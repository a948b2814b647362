"""A small selection service with scripted behaviour, over a real socket.

It answers every super-batch with its first b positions, unless a test says otherwise: by `on_super_batch`, which
decides about each one, or by the `Stream` objects, through which a test answers, gives credit, and breaks streams.
"""

from __future__ import annotations

import hashlib
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from preceptor.errors import REASON_METADATA_KEY, RETRY_AFTER_METADATA_KEY
from preceptor.v1 import ledger_pb2, memory_bank_pb2, run_pb2, selection_pb2, weights_pb2
from preceptor.wire import methods

WAIT_S = 20.0

_OPTIONS = [
    ("grpc.so_reuseport", 0),
    # As the gateway's own, which lets clients look often whether it is there.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
]


@dataclass(frozen=True)
class Abort:
    """Ends a call with a status."""

    code: str
    reason: str | None = None
    details: str = "the test said so"
    retry_after_s: float | None = None


@dataclass(frozen=True)
class Received:
    """One complete super-batch, as it arrived."""

    header: selection_pb2.SuperBatchHeader
    body: bytes
    chunk_sizes: tuple[int, ...]

    @property
    def key(self) -> tuple[int, int]:
        return self.header.step, self.header.rank


@dataclass(eq=False)
class Stream:
    """One open Select stream, as the service sees it."""

    service: FakeService
    open: selection_pb2.SelectOpen | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    broken_order: list[str] = field(default_factory=list)
    unanswered_bytes: int = 0
    max_unanswered_bytes: int = 0
    is_over: bool = False
    outbox: queue.Queue[selection_pb2.SelectResponse | Abort | None] = field(default_factory=queue.Queue)

    def answer(self, received: Received, learner_version: int | None = None, with_credit: bool = True) -> None:
        """Selects the first b positions and gives the credit back."""
        header = received.header
        selection = selection_pb2.Selection(
            step=header.step,
            rank=header.rank,
            indices=np.arange(header.sub_batch_size, dtype="<i8").tobytes(),
            scores=np.arange(header.row_count, dtype="<f4").tobytes(),
            learner_version=learner_version,
        )
        if with_credit:
            self.give_credit(len(received.body))
        self.outbox.put(selection_pb2.SelectResponse(selection=selection))

    def fail(self, received: Received, code: str, reason: str, message: str) -> None:
        """Answers one super-batch with a failure and gives the credit back."""
        failure = selection_pb2.Failure(
            step=received.header.step, rank=received.header.rank, code=code, reason=reason, message=message
        )
        self.give_credit(len(received.body))
        self.outbox.put(selection_pb2.SelectResponse(failure=failure))

    def refuse(self, received: Received, retry_after_s: float, with_credit: bool = True) -> None:
        """Has no place for one super-batch, and gives the credit back."""
        header = received.header
        failure = selection_pb2.Failure(
            step=header.step, rank=header.rank, code="RESOURCE_EXHAUSTED", reason="OVERLOADED", message="no place"
        )
        failure.retry_after.FromNanoseconds(round(retry_after_s * 1e9))
        if with_credit:
            self.give_credit(len(received.body))
        self.outbox.put(selection_pb2.SelectResponse(failure=failure))

    def give_credit(self, byte_count: int) -> None:
        """Permits more bytes."""
        with self.service.changed:
            self.unanswered_bytes -= byte_count
        self.outbox.put(selection_pb2.SelectResponse(credit=selection_pb2.Credit(bytes=byte_count)))

    def abort(self, code: str, reason: str | None = None, details: str = "the test said so") -> None:
        """Ends the stream with a status."""
        self.outbox.put(Abort(code, reason, details))

    def end(self) -> None:
        """Ends the stream with OK."""
        self.outbox.put(None)

    def read(self, requests: Iterator[selection_pb2.SelectRequest]) -> None:
        """Reads the stream to its end and checks its order."""
        try:
            self._read(requests)
        except grpc.RpcError:
            pass
        except Exception as error:  # the iterator of a call that the client cancelled raises a plain Exception
            if str(error):
                raise
        finally:
            self.outbox.put(None)

    def _read(self, requests: Iterator[selection_pb2.SelectRequest]) -> None:
        for request in requests:
            if request.WhichOneof("kind") != "super_batch":
                self.broken_order.append(f"{request.WhichOneof('kind')} where a header was due")
                return
            header = request.super_batch
            body, sizes = b"", []
            with self.service.changed:
                self.service.announced.append((header.step, header.rank))
                self.service.changed.notify_all()
            while len(body) < header.body_bytes:
                chunk = next(requests).chunk
                if chunk.offset != len(body) or not 0 < len(chunk.data) <= self.service.max_chunk_bytes:
                    self.broken_order.append(f"chunk of {len(chunk.data)} bytes at {chunk.offset}, not {len(body)}")
                    return
                body += chunk.data
                sizes.append(len(chunk.data))
                with self.service.changed:
                    self.unanswered_bytes += len(chunk.data)
                    self.max_unanswered_bytes = max(self.max_unanswered_bytes, self.unanswered_bytes)
                    self.service.changed.notify_all()
            received = Received(header, body, tuple(sizes))
            with self.service.changed:
                self.received.append(received)
                self.service.changed.notify_all()
            self.service.on_super_batch(self, received)


class FakeService:
    """The service; use as a context manager.

    Args:
        window_bytes, max_super_batch_bytes, max_chunk_bytes: as in `SelectOpened`.
        columns: names of the run's columns.
        port: 0 for a free one.
        without: names of rpcs that this service does not know.
    """

    def __init__(
        self,
        window_bytes: int = 1 << 20,
        max_super_batch_bytes: int | None = None,
        max_chunk_bytes: int = 1 << 16,
        columns: tuple[str, ...] = ("image", "label"),
        port: int = 0,
        without: tuple[str, ...] = (),
    ) -> None:
        self.window_bytes = window_bytes
        self.max_super_batch_bytes = max_super_batch_bytes or window_bytes
        self.max_chunk_bytes = max_chunk_bytes
        self.columns = columns
        self.changed = threading.Condition()
        self.streams: list[Stream] = []
        self.announced: list[tuple[int, int]] = []
        self.runs: dict[str, run_pb2.RunSpec] = {}
        self.lives: Counter[str] = Counter()
        """How often each run was created; its creation time in seconds."""
        self.ledger: list[ledger_pb2.ReadLedgerResponse | Abort] = []
        self.reported: dict[str, dict[int, float]] = {}
        """What ReadLedger answers."""
        self.last_step: int | None = None
        self.learner_step: int | None = None
        self.metadata: dict[str, dict[str, str]] = {}
        self.aborts: dict[str, Abort] = {}
        """Status with which every call of an rpc ends."""
        self.first_aborts: dict[str, list[Abort]] = {}
        """Statuses with which the next calls of an rpc end, in order, before it works."""
        self.slow_calls: set[str] = set()
        """Calls that are not answered before the service stops."""
        self.stopped = threading.Event()
        self.calls: Counter[str] = Counter()
        self.on_super_batch: Callable[[Stream, Received], None] = lambda stream, received: stream.answer(received)
        self.opened: Callable[[], selection_pb2.SelectResponse | None] = self._opened
        self.pushes: list[bytes] = []
        self.push_chunk_sizes: list[int] = []
        self.push_headers: list[weights_pb2.PushHeader] = []
        self.score_requests: list[selection_pb2.ScoreHeader] = []
        self.remembered: list[tuple[memory_bank_pb2.RememberHeader, bytes]] = []
        """Each super-batch that was put into a memory bank, with its body."""
        self.samples: list[memory_bank_pb2.SampleBankRequest] = []
        self.learner_version: int | None = None
        self._pool = ThreadPoolExecutor(32)
        self._server = grpc.server(self._pool, options=_OPTIONS)
        for service in {method.service for method in methods()}:
            known = [method for method in methods() if method.service == service and method.name not in without]
            handlers = {method.name: self._handler(method) for method in known}
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.target = f"127.0.0.1:{self.port}"

    def __enter__(self) -> FakeService:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends all calls at once and frees the port."""
        self.stopped.set()
        with self.changed:
            streams = list(self.streams)
        stopped = self._server.stop(grace=0)
        for stream in streams:
            stream.end()
        stopped.wait(WAIT_S)
        self._pool.shutdown(wait=False)

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        """Waits until `condition` holds; fails the test where it does not come true."""
        deadline = time.monotonic() + WAIT_S
        with self.changed:
            while not condition():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"never came true: {what}")
                self.changed.wait(0.05)

    @property
    def received(self) -> list[Received]:
        """Every complete super-batch, over all streams."""
        return [received for stream in self.streams for received in stream.received]

    def run_message(self, spec: run_pb2.RunSpec) -> run_pb2.Run:
        """The run as this service describes it."""
        columns = [run_pb2.Column(name=name, element_type="float") for name in self.columns]
        return run_pb2.Run(
            spec=spec,
            create_time=Timestamp(seconds=self.lives[spec.run_id]),
            columns=columns,
            micro_batch_rows=32,
            super_batches=len(self.received),
            last_step=self.last_step,
            learner_step=self.learner_step,
        )

    def _handler(self, method: Any) -> grpc.RpcMethodHandler:
        kind = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.client_streaming, method.server_streaming]
        behaviour = getattr(self, re.sub("([A-Z])", r"_\1", method.name).lower())

        def scripted(request: Any, context: grpc.ServicerContext) -> Any:
            self.metadata[method.name] = {key: str(value) for key, value in context.invocation_metadata()}
            self.calls[method.name] += 1
            if self.first_aborts.get(method.name):
                abort_with(context, self.first_aborts[method.name].pop(0))
            if method.name in self.slow_calls:
                self.stopped.wait(WAIT_S)
            if method.name in self.aborts:
                abort_with(context, self.aborts[method.name])
            return behaviour(request, context)

        def scripted_stream(request: Any, context: grpc.ServicerContext) -> Any:
            yield from scripted(request, context)

        return kind(
            scripted_stream if method.server_streaming else scripted,
            request_deserializer=method.request.FromString,
            response_serializer=method.response.SerializeToString,
        )

    def _read_ledger(self, _: ledger_pb2.ReadLedgerRequest, context: Any) -> Iterator[ledger_pb2.ReadLedgerResponse]:
        for response in self.ledger:
            if isinstance(response, Abort):
                abort_with(context, response)
            else:
                yield response

    def _report_metrics(
        self, request: selection_pb2.ReportMetricsRequest, _: Any
    ) -> selection_pb2.ReportMetricsResponse:
        for name, value in request.values.items():
            self.reported.setdefault(name, {})[request.step] = value
        return selection_pb2.ReportMetricsResponse()

    def _list_metrics(self, _: Any, __: Any) -> selection_pb2.ListMetricsResponse:
        series = [
            selection_pb2.MetricSeries(name=name, steps=list(values), values=list(values.values()))
            for name, values in self.reported.items()
        ]
        return selection_pb2.ListMetricsResponse(series=series)

    def _create_run(self, request: selection_pb2.CreateRunRequest, _: Any) -> selection_pb2.CreateRunResponse:
        self.lives[request.spec.run_id] += request.spec.run_id not in self.runs
        self.runs[request.spec.run_id] = request.spec
        return selection_pb2.CreateRunResponse(run=self.run_message(request.spec))

    def _get_run(
        self, request: selection_pb2.GetRunRequest, context: grpc.ServicerContext
    ) -> selection_pb2.GetRunResponse:
        if request.run_id not in self.runs:
            abort_with(context, Abort("NOT_FOUND", "RUN_NOT_FOUND", f"no run {request.run_id!r}"))
        return selection_pb2.GetRunResponse(run=self.run_message(self.runs[request.run_id]))

    def _list_runs(self, _: Any, __: Any) -> selection_pb2.ListRunsResponse:
        runs = [self.run_message(spec) for _, spec in sorted(self.runs.items())]
        return selection_pb2.ListRunsResponse(runs=runs)

    def _delete_run(self, request: selection_pb2.DeleteRunRequest, _: Any) -> selection_pb2.DeleteRunResponse:
        del self.runs[request.run_id]
        return selection_pb2.DeleteRunResponse()

    def _score(self, requests: Iterator[selection_pb2.ScoreRequest], _: Any) -> selection_pb2.ScoreResponse:
        header = next(requests).header
        self.score_requests.append(header)
        body = b"".join(request.chunk.data for request in requests)
        if len(body) != header.body_bytes:
            raise ValueError(f"{len(body)} bytes came, {header.body_bytes} were announced")
        return selection_pb2.ScoreResponse(
            learner_losses=np.full(header.row_count, 2, dtype="<f4").tobytes(),
            scores=np.arange(header.row_count, dtype="<f4").tobytes(),
            learner_version=self.learner_version,
        )

    def _remember(
        self, requests: Iterator[memory_bank_pb2.RememberRequest], _: Any
    ) -> memory_bank_pb2.RememberResponse:
        header = next(requests).header
        self.remembered.append((header, b"".join(request.chunk.data for request in requests)))
        return memory_bank_pb2.RememberResponse(
            scores=np.arange(header.row_count, dtype="<f4").tobytes(),
            learner_version=self.learner_version,
            examples=header.row_count,
        )

    def _sample_bank(self, request: memory_bank_pb2.SampleBankRequest, _: Any) -> memory_bank_pb2.SampleBankResponse:
        self.samples.append(request)
        drawn = np.arange(request.sub_batch_size)
        return memory_bank_pb2.SampleBankResponse(
            example_id=drawn.astype("<i8").tobytes(), scores=drawn.astype("<f4").tobytes()
        )

    def _push_weights(
        self, requests: Iterator[weights_pb2.PushWeightsRequest], context: grpc.ServicerContext
    ) -> weights_pb2.PushWeightsResponse:
        header = next(requests).header
        self.push_headers.append(header)
        data = b""
        for request in requests:
            if request.WhichOneof("kind") == "commit":
                digest = hashlib.sha256(data)
                if len(data) != header.total_bytes or digest.digest() != request.commit.sha256:
                    abort_with(context, Abort("INVALID_ARGUMENT", "WEIGHTS_INVALID", "truncated or altered"))
                self.pushes.append(data)
                version = weights_pb2.WeightsVersion(
                    version=len(self.pushes),
                    step=header.step,
                    digest=f"sha256:{digest.hexdigest()}",
                    total_bytes=len(data),
                )
                return weights_pb2.PushWeightsResponse(version=version, replicas_loaded=1, replicas_asked=2)
            if request.chunk.offset != len(data):
                abort_with(context, Abort("INVALID_ARGUMENT", "MESSAGE_INVALID", "chunk out of order"))
            data += request.chunk.data
            self.push_chunk_sizes.append(len(request.chunk.data))
        abort_with(context, Abort("INVALID_ARGUMENT", "WEIGHTS_INVALID", "no commit"))
        raise AssertionError("abort raises")

    def _get_weights(self, _: Any, __: Any) -> weights_pb2.GetWeightsResponse:
        return weights_pb2.GetWeightsResponse()

    def _opened(self) -> selection_pb2.SelectResponse:
        return selection_pb2.SelectResponse(
            opened=selection_pb2.SelectOpened(
                window_bytes=self.window_bytes,
                max_super_batch_bytes=self.max_super_batch_bytes,
                max_chunk_bytes=self.max_chunk_bytes,
            )
        )

    def _select(
        self, requests: Iterator[selection_pb2.SelectRequest], context: grpc.ServicerContext
    ) -> Iterator[selection_pb2.SelectResponse]:
        stream = Stream(self, metadata={key: str(value) for key, value in context.invocation_metadata()})
        first = next(requests)
        stream.open = first.open
        opened = self.opened()
        with self.changed:
            self.streams.append(stream)
            self.changed.notify_all()
        if opened is not None:
            yield opened
        threading.Thread(target=stream.read, args=(requests,), daemon=True).start()
        while (response := stream.outbox.get(timeout=10 * WAIT_S)) is not None:
            if isinstance(response, Abort):
                abort_with(context, response)
            else:
                yield response
        with self.changed:
            stream.is_over = True
            self.changed.notify_all()


def abort_with(context: grpc.ServicerContext, abort: Abort) -> None:
    """Ends a call as the real gateway does: status code, details, and the reason in the trailing metadata."""
    trailing = [] if abort.reason is None else [(REASON_METADATA_KEY, abort.reason)]
    if abort.retry_after_s is not None:
        trailing.append((RETRY_AFTER_METADATA_KEY, str(round(1000 * abort.retry_after_s))))
    context.set_trailing_metadata(tuple(trailing))
    context.abort(grpc.StatusCode[abort.code], abort.details)
