"""`WeightsService` of the contract: weights staged, checked against the run, committed, loaded."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc

from preceptor.errors import CoTrainedError, InvalidMessageError, InvalidWeightsError, PreceptorError
from preceptor.quoting import shortened
from preceptor.v1 import weights_pb2
from preceptor_service.gateway import translate
from preceptor_service.gateway.body import ChunkOrder, next_message
from preceptor_service.gateway.recorder import Recorder
from preceptor_service.gateway.upload import Upload
from preceptor_service.runs import ActiveRun, RunRegistry
from preceptor_service.weight_store import WeightStore
from preceptor_service.weight_versions import Role, WeightsVersion

Context: TypeAlias = grpc.aio.ServicerContext

_ROLES: dict[weights_pb2.WeightsRole.ValueType, Role] = {
    weights_pb2.WEIGHTS_ROLE_LEARNER: "learner",
    weights_pb2.WEIGHTS_ROLE_REFERENCE: "reference",
}


class WeightsService:
    """Takes weights; see `proto/preceptor/v1/weights.proto` for what each call promises."""

    def __init__(self, runs: RunRegistry, weight_store: WeightStore, recorder: Recorder, silence_s: float) -> None:
        self._runs = runs
        self._weight_store = weight_store
        self._recorder = recorder
        self._silence_s = silence_s

    async def push_weights(
        self, requests: AsyncIterator[weights_pb2.PushWeightsRequest], context: Context
    ) -> weights_pb2.PushWeightsResponse:
        """Commits one set of weights and has the scorers load it."""
        started = time.perf_counter()
        first = await next_message(requests, self._silence_s)
        if first.WhichOneof("kind") != "header":
            raise InvalidMessageError("the stream does not start with PushHeader; send it first")
        header = first.header
        role = _role(header)
        run = await self._runs.get(header.run_id)
        try:
            _check_pushed(role, run)
            role = _role_of_fold(role, header, run)
            if header.HasField("card"):
                _check_fold_of_card(header)
                await asyncio.to_thread(self._runs.check_card, run, role, header.card)
            version = await self._committed(run, role, header, requests)
        except PreceptorError as error:
            self._recorder.push_failed(run, error)
            raise
        finally:
            self._runs.collector.ask()  # also where the disk was full
        self._recorder.pushed(run, role, time.perf_counter() - started)
        report = await (
            self._runs.serve(run, version) if role == "learner" else self._runs.serve_reference(run, role, version)
        )
        return weights_pb2.PushWeightsResponse(
            version=translate.weights_version(version), replicas_loaded=report.loaded, replicas_asked=report.asked
        )

    async def _committed(
        self,
        run: ActiveRun,
        role: Role,
        header: weights_pb2.PushHeader,
        requests: AsyncIterator[weights_pb2.PushWeightsRequest],
    ) -> WeightsVersion:
        base_version = await asyncio.to_thread(self._weight_store.newest_number, run.run_id, role)
        async with Upload(self._weight_store, header.total_bytes) as upload:
            await self._receive(requests, upload)
            if header.HasField("card"):
                _check_digest_of_card(header.card.digest, upload.staged.digest)
            await upload.do(self._runs.check_weights, run, role, upload.staged.path, upload.staged.digest or "")
            return await upload.do(
                self._weight_store.commit,
                run.run_id,
                role,
                upload.staged,
                step=header.step,
                base_version=base_version,
                rewind=header.rewind,
                is_current=lambda: self._runs.is_current(run),
            )

    async def get_weights(
        self, request: weights_pb2.GetWeightsRequest, context: Context
    ) -> weights_pb2.GetWeightsResponse:
        """Reads the committed versions of a run."""
        run: ActiveRun = await self._runs.get(request.run_id)
        learners = await asyncio.to_thread(self._weight_store.versions, run.run_id, "learner")
        reference = await asyncio.to_thread(self._weight_store.head, run.run_id, "reference")
        fold_1 = await asyncio.to_thread(self._weight_store.head, run.run_id, "reference_fold_1")
        return weights_pb2.GetWeightsResponse(
            learner_versions=[translate.weights_version(version) for version in learners],
            reference=translate.weights_version(reference) if reference else None,
            reference_fold_1=translate.weights_version(fold_1) if fold_1 else None,
        )

    async def _receive(self, requests: AsyncIterator[weights_pb2.PushWeightsRequest], upload: Upload) -> None:
        staged = upload.staged
        order = ChunkOrder(staged.total_bytes)
        while not order.is_complete:
            request = await next_message(requests, self._silence_s)
            kind = request.WhichOneof("kind")
            if kind == "commit":
                raise InvalidWeightsError(
                    f"the weights are truncated: {order.received_bytes} of {order.total_bytes} bytes came; send all"
                )
            if kind != "chunk":
                raise InvalidMessageError("something other than a Chunk came inside the weights")
            await upload.do(staged.write, order.accept(request.chunk))
        last = await next_message(requests, self._silence_s)
        if last.WhichOneof("kind") != "commit":
            raise InvalidMessageError("the weights do not end with PushCommit; send it last")
        await upload.do(staged.seal, _sha256(last.commit))


def _role(header: weights_pb2.PushHeader) -> Role:
    role = _ROLES.get(header.role)
    if role is None:
        raise InvalidMessageError(f"role is {header.role}; name learner or reference")
    if header.step < 0:
        raise InvalidMessageError(f"step is {header.step}; steps start at 0")
    if role == "reference" and header.step:
        raise InvalidMessageError(f"step is {header.step}; a reference has step 0")
    if role == "learner" and header.HasField("card"):
        raise InvalidMessageError("a card came with a learner; only a reference has one, push without it")
    if header.total_bytes < 1:
        raise InvalidWeightsError(f"the weights have {header.total_bytes} bytes; push at least one tensor")
    return role


def _sha256(commit: weights_pb2.PushCommit) -> bytes:
    sha256 = commit.sha256
    if len(sha256) != hashlib.sha256().digest_size:
        raise InvalidWeightsError(
            f"the SHA-256 in PushCommit has {len(sha256)} bytes, and a SHA-256 has 32; give that of the file"
        )
    return sha256


def _check_pushed(role: Role, run: ActiveRun) -> None:
    co_training = run.spec.co_training
    if co_training is not None and role == "learner":
        raise CoTrainedError(
            f"run {run.run_id!r} has co_training: the service trains its learner copy itself; push only the reference, "
            "or create a run without co_training"
        )
    if co_training is not None and co_training.reference_examples:
        raise CoTrainedError(
            f"run {run.run_id!r} has co_training.reference_examples: the service trains its reference itself; push "
            "nothing, or create a run without them"
        )


def _role_of_fold(role: Role, header: weights_pb2.PushHeader, run: ActiveRun) -> Role:
    is_one_of_two = role == "reference" and run.spec.cross_reference
    if not header.HasField("fold"):
        if is_one_of_two:
            raise InvalidWeightsError(
                f"run {run.run_id!r} has two references; push each with fold=0 or fold=1, the half of the data that it "
                "was trained on"
            )
        return role
    if not is_one_of_two:
        raise InvalidWeightsError(
            f"fold is {header.fold}; only references of a run with cross_reference have one, push without it"
        )
    if header.fold not in (0, 1):
        raise InvalidWeightsError(f"fold is {header.fold}; it is 0 or 1")
    return "reference_fold_1" if header.fold else "reference"


def _check_fold_of_card(header: weights_pb2.PushHeader) -> None:
    if header.card.HasField("fold") and (not header.HasField("fold") or header.card.fold != header.fold):
        pushed = f"with fold={header.fold}" if header.HasField("fold") else "without fold"
        raise InvalidWeightsError(
            f"the reference's card says that it was trained on fold {header.card.fold} of the data, and it is pushed "
            f"{pushed}; push it with fold={header.card.fold} to a run with cross_reference"
        )


def _check_digest_of_card(said: str, found: str | None) -> None:
    if said != found:
        raise InvalidWeightsError(
            f"the reference's card is of the weights {shortened(said)}, and these are {found}; push the weights that "
            "lie beside the card"
        )
