"""`MemoryBankService` of the contract: super-batches into the banks of runs, and sub-batches out of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc

from preceptor.errors import BankOffError, BankShortError, InvalidMessageError, InvalidSuperBatchError
from preceptor.runs import MemoryBank
from preceptor.v1 import memory_bank_pb2
from preceptor_service.drawing import Draw
from preceptor_service.gateway import translate
from preceptor_service.gateway.body import next_message
from preceptor_service.gateway.recorder import Recorder
from preceptor_service.gateway.uploads import Uploads
from preceptor_service.memory_bank.bank import BANK_DOMAIN, Key, Put
from preceptor_service.memory_bank.bank_store import Answer
from preceptor_service.memory_bank.memory_banks import MemoryBanks
from preceptor_service.pipeline import Pipeline
from preceptor_service.runs import ActiveRun, Pinned, RunRegistry
from preceptor_service.schedule import is_held_back
from preceptor_service.selected import Arrived

Context: TypeAlias = grpc.aio.ServicerContext

_RANKS = 65_536
"""A bank remembers how far each rank came, so that there must be an end to them."""


class MemoryBankService:
    """Answers for memory banks; see `proto/preceptor/v1/memory_bank.proto` for what each call promises."""

    def __init__(
        self, runs: RunRegistry, pipeline: Pipeline, uploads: Uploads, banks: MemoryBanks, recorder: Recorder
    ) -> None:
        self._runs = runs
        self._pipeline = pipeline
        self._uploads = uploads
        self._banks = banks
        self._recorder = recorder

    async def remember(
        self, requests: AsyncIterator[memory_bank_pb2.RememberRequest], context: Context
    ) -> memory_bank_pb2.RememberResponse:
        """Scores one super-batch and puts it into the bank."""
        first = await next_message(requests, self._uploads.silence_s)
        if first.WhichOneof("kind") != "header":
            raise InvalidMessageError("the stream does not start with RememberHeader; send it first")
        header = first.header
        run = await self._runs.get(header.run_id)
        settings = _bank_of(run)
        _check_header(header, settings)
        deadline = asyncio.get_running_loop().time() + run.deadline_s
        key, identity = Key("put", header.step, header.rank), header.digest.hex()
        known = await self._banks.find_put(run.record, key, identity, deadline)
        if known is not None:  # scoring it again would cost time, and change nothing
            return translate.remembered(known)

        async def scored_and_put(pinned: Pinned, arrived: Arrived) -> Answer[Put]:
            scored, ids, contents, stages = await self._pipeline.score_by_id(run, pinned, arrived)
            learner = pinned.learner
            version, step = (learner.version, learner.step) if learner else (0, 0)
            asked = Put(key, identity, ids, scored.scores, version, step, contents)

            def tell(answer: Answer[Put]) -> None:
                self._recorder.remembered(run, answer, pinned, stages)

            return await self._banks.put(run.record, asked, settings, deadline, tell)

        # While it waits for the store, too, its bytes count as held.
        answer, *_ = await self._uploads.scored(run, header, requests, scored_and_put, deadline)
        return translate.remembered(answer.operation)

    async def sample_bank(
        self, request: memory_bank_pb2.SampleBankRequest, context: Context
    ) -> memory_bank_pb2.SampleBankResponse:
        """Samples one sub-batch."""
        run = await self._runs.get(request.run_id)
        settings = _bank_of(run)
        _check_name(request.step, request.rank)
        if not 1 <= request.sub_batch_size <= settings.capacity:
            raise InvalidSuperBatchError(
                f"sub_batch_size is {request.sub_batch_size}; choose from 1 to the {settings.capacity} examples that "
                "the bank has room for"
            )
        draw = Draw(request.step, request.rank, request.sub_batch_size, BANK_DOMAIN)
        deadline = asyncio.get_running_loop().time() + run.deadline_s
        try:
            answer = await self._banks.sample(
                run.record, run.selector, settings, draw, deadline, lambda answer: self._recorder.sampled(run, answer)
            )
        except BankShortError:
            self._recorder.found_too_few(run)
            raise
        return translate.sampled(answer.operation, is_held_back(run.spec, request.step))


def _bank_of(run: ActiveRun) -> MemoryBank:
    if run.spec.memory_bank is None:
        raise BankOffError(
            f"run {run.run_id!r} has no memory bank, and cannot get one; create a run with "
            "RunSpec(..., memory_bank=MemoryBank(capacity=...))"
        )
    return run.spec.memory_bank


def _check_header(header: memory_bank_pb2.RememberHeader, settings: MemoryBank) -> None:
    _check_name(header.step, header.rank)
    if not 1 <= len(header.digest) <= 32:
        raise InvalidSuperBatchError(f"digest has {len(header.digest)} bytes; give 1 to 32")
    if header.row_count > settings.capacity:
        raise InvalidSuperBatchError(
            f"the super-batch has {header.row_count} candidates, and the bank has room for {settings.capacity}; offer "
            "fewer at once, or create a run with a larger capacity"
        )


def _check_name(step: int, rank: int) -> None:
    if step < 0 or not 0 <= rank < _RANKS:
        raise InvalidSuperBatchError(
            f"step is {step} and rank is {rank}; steps start at 0, ranks are 0 to {_RANKS - 1}"
        )
