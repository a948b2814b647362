from __future__ import annotations

import asyncio
import errno
import gc
import logging
import pickle
import weakref
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectStoreFullError,
    OutOfMemoryError,
    RayTaskError,
    RpcError,
    WorkerCrashedError,
)
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError, RequestCancelledError

from preceptor.co_training import CoTraining
from preceptor.errors import InternalError, PreceptorError, ResourceExhaustedError, WeightsNotFoundError
from preceptor_service.byte_budget import ByteBudget
from preceptor_service.scoring.pool import (
    Deployed,
    Losses,
    MicroBatch,
    ScorerFailedError,
    ScorerLostError,
    ScorerUnreachableError,
    ScoringModels,
    Trainee,
    Training,
)
from preceptor_service.scoring.ray_pool import RayPool

MODELS = ScoringModels("run", "classification", None, None)
LOSSES = Losses(np.zeros(2, np.float32), None, 0.0, 0.0)


class AnsweringHandle:
    """A deployment handle whose every answer is the same error."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self.losses = self.train = self

    def remote(self, *_: object) -> asyncio.Future[Losses]:
        answer: asyncio.Future[Losses] = asyncio.get_running_loop().create_future()
        answer.set_exception(self._error)
        return answer


def raised_for(error: Exception, call: Literal["losses", "train"] = "losses") -> Exception:
    """What the pool makes of an answer of Ray's."""

    async def scenario() -> None:
        pool = RayPool(AnsweringHandle(error), ByteBudget(1), load_timeout_s=1.0)  # type: ignore[arg-type]
        if call == "losses":
            await pool.losses(MODELS, MicroBatch({}, 0))
        else:
            await pool.train(Training("run", "classification", CoTraining(), Trainee("small_cnn", "{}")))

    with pytest.raises((PreceptorError, ScorerLostError, FileNotFoundError)) as raised:
        asyncio.run(scenario())
    return raised.value


def raised_by_a_replica(cause: Exception) -> RayTaskError:
    """As it arrives: pickled, and of both types."""
    traceback = f"a traceback\n{cause}"
    error = RayTaskError("losses", traceback, cause, "scorer", 1, "127.0.0.1")  # type: ignore[no-untyped-call]
    return pickle.loads(pickle.dumps(error)).as_instanceof_cause()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "cause",
    [
        RuntimeError("CUDA error: unspecified launch failure"),
        OSError(errno.ESTALE, "secret"),
        FileNotFoundError(2, "x"),
    ],
)
def test_an_error_of_a_replica_that_is_not_ours_is_a_failure_of_that_scorer(
    cause: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    raised = raised_for(raised_by_a_replica(cause))
    assert isinstance(raised, ScorerFailedError)
    assert isinstance(raised.answer, InternalError)
    assert str(cause) not in str(raised)
    (record,) = caplog.records
    assert str(cause) in caplog.text
    assert record.levelno == logging.ERROR


def test_what_a_scorer_says_of_a_request_stays_the_answer() -> None:
    raised = raised_for(raised_by_a_replica(WeightsNotFoundError("no weights sha256:0")))
    assert type(raised) is WeightsNotFoundError
    assert str(raised) == "no weights sha256:0"
    assert type(raised_for(raised_by_a_replica(FileNotFoundError("step-4")), "train")) is FileNotFoundError


def test_a_failure_arrives_with_the_name_of_its_scorer_and_is_not_logged_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failure = ScorerFailedError(ResourceExhaustedError("16 rows need more memory"))
    failure.scorer = "replica-3"
    raised = raised_for(raised_by_a_replica(failure))
    assert isinstance(raised, ScorerFailedError)
    assert raised.scorer == "replica-3"
    assert isinstance(raised.answer, ResourceExhaustedError)
    assert str(raised.answer) == "16 rows need more memory"
    assert not caplog.records


@pytest.mark.parametrize(
    "error",
    [
        ActorUnavailableError("cut off", None),
        RpcError("deadline"),  # type: ignore[no-untyped-call]
        LocalRayletDiedError(),
        DeploymentUnavailableError(DeploymentID("Scorer", "default")),
        ReplicaUnavailableError("replica-3"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_scorer_that_cannot_be_reached_is_told_from_one_that_died(error: Exception) -> None:
    assert isinstance(raised_for(error), ScorerUnreachableError)


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        WorkerCrashedError(),
        OutOfMemoryError("the node ran out of memory"),  # type: ignore[no-untyped-call]
        NodeDiedError("lost"),  # type: ignore[no-untyped-call]
        ObjectStoreFullError("full"),
        RequestCancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_else_ray_says_is_a_lost_scorer(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    assert type(raised_for(error)) is ScorerLostError
    assert type(error).__name__ in caplog.text


class HoardingHandle:
    """A deployment handle that keeps every argument, as Serve's router may, and that delivers by pickling."""

    deployment_name = "Scorer"
    deployment_id = DeploymentID("Scorer", "preceptor")

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.delivered: list[Any] = []
        self.losses = self

    def remote(self, models: ScoringModels, batch: Any, waiting: tuple[str, int]) -> asyncio.Future[Losses]:
        self.kept.append(batch)
        self.delivered.append(pickle.loads(pickle.dumps(batch)))
        answer: asyncio.Future[Losses] = asyncio.get_running_loop().create_future()
        answer.set_result(LOSSES)
        return answer


async def ask(handle: HoardingHandle, column: np.ndarray) -> Losses:
    pool = RayPool(handle, ByteBudget(1), load_timeout_s=1.0)  # type: ignore[arg-type]
    return await pool.losses(MODELS, MicroBatch({"x": column}, 2))


def test_a_scorer_gets_the_micro_batch_itself() -> None:
    handle = HoardingHandle()
    assert asyncio.run(ask(handle, np.arange(4))) is LOSSES
    (batch,) = handle.delivered
    assert isinstance(batch, MicroBatch)
    assert batch.columns["x"].tolist() == [0, 1, 2, 3]
    assert batch.row_count == 2


@pytest.mark.parametrize(
    ("failed_at", "named"),
    [((), ()), (("a",), ("a",)), (("a", "a", "a"), ("a", "a", "a")), (("a", "b"), ()), (("a", "b", "a"), ())],
)
def test_scorers_that_failed_leave_a_micro_batch_to_others_while_there_are_some(
    failed_at: tuple[str, ...], named: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorers = SimpleNamespace(status="HEALTHY", replica_states={"RUNNING": 2, "STARTING": 1})
    application = SimpleNamespace(deployments={"Scorer": scorers})
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications={"preceptor": application}))
    handle = HoardingHandle()
    pool = RayPool(handle, ByteBudget(1), load_timeout_s=1.0)  # type: ignore[arg-type]
    batch = MicroBatch({"x": np.arange(4)}, 2, failed_at=failed_at)

    async def twice() -> None:
        await pool.losses(MODELS, batch)
        assert pool.deployed() == Deployed(target=3, running=2, updating={"Scorer": False})
        await pool.losses(MODELS, batch)

    asyncio.run(twice())
    assert [delivered.failed_at for delivered in handle.delivered] == [failed_at, named]


def test_an_answered_micro_batch_is_let_go_even_where_the_router_keeps_the_request() -> None:
    handle = HoardingHandle()
    column = np.arange(4)
    alive = weakref.ref(column)
    asyncio.run(ask(handle, column))
    del column
    gc.collect()
    assert handle.kept
    assert alive() is None
