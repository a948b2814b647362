"""`LedgerService` of the contract: the ledgers of runs, read as they lie in the store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

import grpc

from preceptor.errors import InvalidMessageError, LedgerOffError, StepsNotKeptError
from preceptor.v1 import ledger_pb2
from preceptor_service.gateway.sending import send
from preceptor_service.ledger.ledger import Ledger
from preceptor_service.ledger.ledger_store import DamagedSegmentError, LedgerStore, Segment
from preceptor_service.runs import RunRegistry

Context: TypeAlias = grpc.aio.ServicerContext

_FLUSH_S = 10.0


class LedgerService:
    """Reads ledgers; see `proto/preceptor/v1/ledger.proto` for what the call promises.

    Holds one segment per call, and gives up a caller that takes none for `silence_s`.
    """

    def __init__(self, runs: RunRegistry, ledger: Ledger, store: LedgerStore, silence_s: float) -> None:
        self._runs = runs
        self._ledger = ledger
        self._store = store
        self._silence_s = silence_s

    async def read_ledger(self, request: ledger_pb2.ReadLedgerRequest, context: Context) -> None:
        """Sends the segments that may hold steps of the range."""
        run = await self._runs.get(request.run_id)
        if not run.spec.ledger:
            raise LedgerOffError(
                f"run {run.run_id!r} keeps no ledger, and cannot begin one; create a run with RunSpec(..., ledger=True)"
            )
        if request.from_step < 0 or (request.HasField("to_step") and request.to_step < request.from_step):
            raise InvalidMessageError(
                f"steps {request.from_step} to {request.to_step} were asked for; the range starts at 0 and ends after "
                "it begins"
            )
        await self._ledger.flush(_FLUSH_S)
        kept = await asyncio.to_thread(self._store.segments, run.run_id)
        has_range = request.HasField("from_step") or request.HasField("to_step")
        if has_range and not any(_overlaps(segment, request) for segment in kept):
            raise StepsNotKeptError(_what_is_kept(run.run_id, request, kept))
        await self._answer(context, ledger_pb2.ReadLedgerResponse(kept=_summary(kept)))
        sent = ""
        while segments := [segment for segment in kept if segment.name > sent and _overlaps(segment, request)]:
            sent = await self._send(segments, context)
            if sent == segments[-1].name:
                return
            kept = await asyncio.to_thread(self._store.segments, run.run_id)

    async def _send(self, segments: Sequence[Segment], context: Context) -> str:
        """Returns the name of the last one that was dealt with: the last of all, or one that is gone.

        That was dropped, or replaced by one that comes after it and also holds what was answered since.
        """
        for segment in segments:
            try:
                content = await asyncio.to_thread(self._store.read, segment)
            except FileNotFoundError:
                return segment.name
            except DamagedSegmentError:
                await self._answer(context, ledger_pb2.ReadLedgerResponse(damage=_damage(segment)))
            else:
                found = ledger_pb2.LedgerSegment(parquet=content)
                await self._answer(context, ledger_pb2.ReadLedgerResponse(segment=found))
        return segments[-1].name

    async def _answer(self, context: Context, response: ledger_pb2.ReadLedgerResponse) -> None:
        await send(context, response, self._silence_s)


def _overlaps(segment: Segment, request: ledger_pb2.ReadLedgerRequest) -> bool:
    return segment.last_step >= request.from_step and not (
        request.HasField("to_step") and segment.first_step > request.to_step
    )


def _summary(kept: Sequence[Segment]) -> ledger_pb2.LedgerKept:
    return ledger_pb2.LedgerKept(
        steps=sum(segment.steps for segment in kept),
        first_step=min((segment.first_step for segment in kept), default=None),
        last_step=max((segment.last_step for segment in kept), default=None),
        total_bytes=sum(segment.total_bytes for segment in kept),
    )


def _what_is_kept(run_id: str, request: ledger_pb2.ReadLedgerRequest, kept: Sequence[Segment]) -> str:
    asked = f"from {request.from_step}" + (f" to {request.to_step}" if request.HasField("to_step") else " on")
    if not kept:
        return (
            f"the ledger of run {run_id!r} is empty: nothing was selected, remembered or sampled yet, or it could not "
            "be written"
        )
    first, last = min(segment.first_step for segment in kept), max(segment.last_step for segment in kept)
    return (
        f"the ledger of run {run_id!r} holds steps {first} to {last}, and none {asked}; older ones are dropped at "
        "ledger.max_steps_per_run, max_bytes_per_run and max_bytes"
    )


def _damage(segment: Segment) -> ledger_pb2.LedgerDamage:
    return ledger_pb2.LedgerDamage(
        name=segment.path, steps=segment.steps, first_step=segment.first_step, last_step=segment.last_step
    )
