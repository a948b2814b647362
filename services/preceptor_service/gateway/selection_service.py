"""`SelectionService` of the contract: runs, Select, Score, and what trainers report."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

import grpc

from preceptor.errors import (
    GatewayDrainingError,
    InvalidMessageError,
    InvalidRunError,
    OverloadedError,
    PermissionDeniedError,
)
from preceptor.runs import RunSpec, spec_from_proto
from preceptor.v1 import run_pb2, selection_pb2
from preceptor_service.access.caller import current_caller
from preceptor_service.config import GatewayConfig
from preceptor_service.gateway import translate
from preceptor_service.gateway.admission import Admission
from preceptor_service.gateway.answer_cache import AnswerCache
from preceptor_service.gateway.body import next_message
from preceptor_service.gateway.recorder import Recorder
from preceptor_service.gateway.reporting import Reporting
from preceptor_service.gateway.select_stream import SelectStream
from preceptor_service.gateway.uploads import Uploads
from preceptor_service.metrics import GatewayMetrics
from preceptor_service.pipeline import Pipeline
from preceptor_service.reported_metrics import ReportedMetrics, check_values
from preceptor_service.runs import RunRegistry
from preceptor_service.tracing import Tracing

Context: TypeAlias = grpc.aio.ServicerContext

_DRAINING = "this gateway is going away; connect again"
_STREAM_RETRY_S = 1.0
"""When a stream that was one too many may be opened again."""


class SelectionService:
    """Answers trainers; see `proto/preceptor/v1/selection.proto` for what each call promises."""

    def __init__(
        self,
        runs: RunRegistry,
        pipeline: Pipeline,
        admission: Admission,
        uploads: Uploads,
        config: GatewayConfig,
        metrics: GatewayMetrics,
        recorder: Recorder,
        tracing: Tracing,
        reported: ReportedMetrics,
    ) -> None:
        self._runs = runs
        self._pipeline = pipeline
        self._admission = admission
        self._uploads = uploads
        self._config = config
        self._metrics = metrics
        self._recorder = recorder
        self._tracing = tracing
        self._reported = reported
        self._reporting = Reporting()
        self._answers = AnswerCache(config.answer_cache_bytes)
        self._draining = asyncio.Event()
        self._streams = 0
        self._streams_of_run: Counter[str] = Counter()

    def drain(self) -> None:
        """Ends every Select stream as soon as what it accepted is answered, and refuses new ones."""
        self._draining.set()
        self._metrics.draining.set(1)

    async def create_run(
        self, request: selection_pb2.CreateRunRequest, context: Context
    ) -> selection_pb2.CreateRunResponse:
        """Creates a run, or returns the existing one of the same spec."""
        caller = current_caller.get()
        run = await self._runs.create(_spec(request.spec), caller.identity)
        if not caller.may("score", run.run_id, run.record.owner):
            raise PermissionDeniedError(f"run {run.run_id!r} belongs to somebody else; choose another run_id")
        return selection_pb2.CreateRunResponse(run=translate.run(run))

    async def get_run(self, request: selection_pb2.GetRunRequest, context: Context) -> selection_pb2.GetRunResponse:
        """Reads one run."""
        return selection_pb2.GetRunResponse(run=translate.run(await self._runs.get(request.run_id)))

    async def list_runs(
        self, request: selection_pb2.ListRunsRequest, context: Context
    ) -> selection_pb2.ListRunsResponse:
        """Lists the runs that the caller may score."""
        caller = current_caller.get()
        runs = await self._runs.list(lambda record: caller.may("score", record.spec.run_id, record.owner))
        return selection_pb2.ListRunsResponse(runs=[translate.listed(run) for run in runs])

    async def delete_run(
        self, request: selection_pb2.DeleteRunRequest, context: Context
    ) -> selection_pb2.DeleteRunResponse:
        """Deletes a run and its weights."""
        await self._runs.delete(request.run_id)
        return selection_pb2.DeleteRunResponse()

    async def select(self, requests: AsyncIterator[selection_pb2.SelectRequest], context: Context) -> None:
        """Serves one stream of super-batches."""
        if self._draining.is_set():
            raise GatewayDrainingError(_DRAINING)
        if self._streams >= self._config.max_streams:
            raise OverloadedError(
                f"{self._streams} Select streams are open, as many as gateway.max_streams allows; try again later",
                limit="gateway.max_streams",
                retry_after_s=_STREAM_RETRY_S,
            )
        self._streams += 1
        self._metrics.streams.inc()
        # Not when we are done with it: where a trainer takes no answers, gRPC keeps one, and the status behind it.
        context.add_done_callback(self._ended)
        first = await self._first_message(requests)
        if first.WhichOneof("kind") != "open":
            raise InvalidMessageError("the stream does not start with SelectOpen; send it first")
        run = await self._runs.get(first.open.run_id)
        stream = SelectStream(
            run,
            first.open.observed_learner_version,
            self._pipeline,
            self._admission,
            self._answers,
            self._config,
            self._metrics,
            self._recorder,
            self._tracing,
        )
        with self._one_stream_more(run.run_id):
            await stream.serve(requests, context, self._draining)

    def _ended(self, context: Context) -> None:
        self._streams -= 1
        self._metrics.streams.dec()

    @contextmanager
    def _one_stream_more(self, run_id: str) -> Iterator[None]:
        open_streams, limit = self._streams_of_run[run_id], self._config.max_streams_per_run
        if open_streams >= limit:
            raise OverloadedError(
                f"run {run_id!r} has {open_streams} Select streams open, as many as gateway.max_streams_per_run "
                "allows; try again later",
                limit="gateway.max_streams_per_run",
                retry_after_s=_STREAM_RETRY_S,
            )
        self._streams_of_run[run_id] += 1
        try:
            yield
        finally:
            self._streams_of_run[run_id] -= 1
            if not self._streams_of_run[run_id]:
                del self._streams_of_run[run_id]

    async def _first_message(self, requests: AsyncIterator[selection_pb2.SelectRequest]) -> selection_pb2.SelectRequest:
        first, drain = (
            asyncio.create_task(next_message(requests, self._config.silence_s)),
            asyncio.create_task(self._draining.wait()),
        )
        try:
            await asyncio.wait({first, drain}, return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                raise GatewayDrainingError(_DRAINING)
            return first.result()
        finally:
            first.cancel()
            drain.cancel()

    async def score(
        self, requests: AsyncIterator[selection_pb2.ScoreRequest], context: Context
    ) -> selection_pb2.ScoreResponse:
        """Scores one super-batch."""
        started = time.perf_counter()
        first = await next_message(requests, self._config.silence_s)
        if first.WhichOneof("kind") != "header":
            raise InvalidMessageError("the stream does not start with ScoreHeader; send it first")
        header = first.header
        run = await self._runs.get(header.run_id)
        deadline = asyncio.get_running_loop().time() + run.deadline_s
        score = partial(self._pipeline.score, run)
        (scored, stages), pinned, received = await self._uploads.scored(run, header, requests, score, deadline)
        return translate.scores(scored, pinned, stages, received - started, time.perf_counter() - started)

    async def report_metrics(
        self, request: selection_pb2.ReportMetricsRequest, context: Context
    ) -> selection_pb2.ReportMetricsResponse:
        """Keeps what a trainer measured."""
        check_values(request.step, request.values)
        run = await self._runs.get(request.run_id)
        await self._reporting.do(run, partial(self._reported.report, run.record, request.step, dict(request.values)))
        return selection_pb2.ReportMetricsResponse()

    async def list_metrics(
        self, request: selection_pb2.ListMetricsRequest, context: Context
    ) -> selection_pb2.ListMetricsResponse:
        """Reads what was reported of one run."""
        run = await self._runs.get(request.run_id)
        return translate.reported(await self._reporting.do(run, partial(self._reported.read, run.run_id)))


def _spec(message: run_pb2.RunSpec) -> RunSpec:
    try:
        return spec_from_proto(message)
    except ValueError as error:
        raise InvalidRunError(str(error)) from error
