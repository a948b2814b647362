"""Super-batches that come to be scored outside of a Select stream: received, pinned and scored in time.

Called by `SelectionService` and `MemoryBankService`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, NamedTuple, TypeVar

from preceptor.errors import DeadlineExceededError, InvalidMessageError
from preceptor.v1 import memory_bank_pb2, selection_pb2
from preceptor_service.config import GatewayConfig
from preceptor_service.gateway.admission import Admission
from preceptor_service.gateway.body import Body, check_body_bytes, check_rows, next_message
from preceptor_service.pipeline import Pipeline
from preceptor_service.runs import ActiveRun, Pinned
from preceptor_service.selected import Arrived

Requests = AsyncIterator[selection_pb2.ScoreRequest] | AsyncIterator[memory_bank_pb2.RememberRequest]
Header = selection_pb2.ScoreHeader | memory_bank_pb2.RememberHeader

ScoredT = TypeVar("ScoredT")


class Uploaded(NamedTuple, Generic[ScoredT]):
    """What was made of a super-batch, under which learner version, and when its last byte came (`perf_counter`)."""

    scored: ScoredT
    pinned: Pinned
    received: float


class Uploads:
    """Bodies of Score and Remember at one gateway; they wait for room like those of Select, and longer.

    Attributes:
        silence_s: how long each of their messages may take.
    """

    def __init__(self, pipeline: Pipeline, admission: Admission, config: GatewayConfig) -> None:
        self._pipeline = pipeline
        self._bodies = admission.bodies
        self._config = config
        self.silence_s = config.silence_s

    async def scored(
        self,
        run: ActiveRun,
        header: Header,
        requests: Requests,
        score: Callable[[Pinned, Arrived], Awaitable[ScoredT]],
        deadline: float,
    ) -> Uploaded[ScoredT]:
        """Receives what `header` announced, and returns what `score` makes of it under the run's learner version.

        Raises:
            TooLargeError, InvalidMessageError, InvalidSuperBatchError: size, chunks or candidates are wrong.
            DeadlineExceededError: not before `deadline`, of the event loop's clock.
            UnavailableError: nothing came for a while.
            PreceptorError: as `Pipeline.pin` and `score`.
        """
        check_body_bytes(header.body_bytes, self._config)
        check_rows(header.row_count, header.body_bytes, self._config)
        try:
            async with asyncio.timeout_at(deadline), self._bodies.hold(header.body_bytes, run.run_id):
                body = await _received(requests, header.body_bytes, self.silence_s)
                received = time.perf_counter()
                pinned = await self._pipeline.pin(run, None, header.observed_learner_version, deadline)
                scored = await score(pinned, Arrived(body.read(), header.row_count, deadline))
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"{header.body_bytes} bytes were not received and scored within {run.deadline_s:g} s; send them at "
                "once, or raise the run's deadline_s"
            ) from error
        return Uploaded(scored, pinned, received)


async def _received(requests: Requests, body_bytes: int, silence_s: float) -> Body:
    body = Body(body_bytes)
    while not body.is_complete:
        request: selection_pb2.ScoreRequest | memory_bank_pb2.RememberRequest = await next_message(requests, silence_s)
        if request.WhichOneof("kind") != "chunk":
            raise InvalidMessageError("something other than a Chunk came inside the body")
        body.accept(request.chunk)
    return body
