"""`RayPool`: scorers behind a Ray Serve deployment handle."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray import serve
from ray.exceptions import (
    ActorUnavailableError,
    LocalRayletDiedError,
    RayError,
    RayTaskError,
    RpcError,
)
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

from preceptor.errors import PreceptorError
from preceptor_service.byte_budget import ByteBudget
from preceptor_service.scoring.failures import failure
from preceptor_service.scoring.pool import (
    Deployed,
    LoadReport,
    Losses,
    MicroBatch,
    ScorerLostError,
    ScorerUnreachableError,
    ScoringModels,
    Trained,
    Training,
)

logger = logging.getLogger(__name__)

_ANSWER_MARGIN_S = 5.0
"""A replica answers after its own load time-out; only one that hangs does not."""


_UNREACHABLE = (
    ActorUnavailableError,
    DeploymentUnavailableError,
    LocalRayletDiedError,
    ReplicaUnavailableError,
    RpcError,
)
"""What says that no scorer took the micro-batch, or that nobody knows; any other error of Ray, that one had it."""


class _Parcel:
    """A micro-batch on its way: arrives as the micro-batch itself, and is emptied here once it is answered.

    Serve's router keeps requests that it served out of turn until others push them out of its queue, and each would
    keep the whole body that its columns are views of.
    """

    def __init__(self, contents: MicroBatch) -> None:
        self.contents: MicroBatch | None = contents

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[MicroBatch | None]]:
        return _unpacked, (self.contents,)


def _unpacked(contents: MicroBatch | None) -> MicroBatch | None:
    return contents


class RayPool:
    """Implements `ScorerPool`: Serve routes each micro-batch to the least loaded replica.

    Args:
        scorers: handle of the `Scorer` deployment.
        in_flight: what this gateway's micro-batches wait for; how many do is told to the scorers, for autoscaling.
        load_timeout_s: longest load of weights by one scorer.
    """

    def __init__(self, scorers: DeploymentHandle[Any], in_flight: ByteBudget, load_timeout_s: float) -> None:
        self._scorers = scorers
        self._in_flight = in_flight
        self._name = uuid.uuid4().hex
        self._load_timeout_s = load_timeout_s
        self._running: int | None = None  # scorers, at the last look

    async def losses(self, models: ScoringModels, batch: MicroBatch) -> Losses:
        """Scores one micro-batch on one replica; see `ScorerPool.losses`.

        It goes without the names of those that failed with it where these are all that there are.
        """
        if self._running is not None and len(set(batch.failed_at)) >= self._running:
            batch = replace(batch, failed_at=())
        parcel = _Parcel(batch)
        response = self._scorers.losses.remote(models, parcel, (self._name, self._in_flight.waiting))
        try:
            losses: Losses = await _answered(response, models.run_id)
        finally:
            parcel.contents = None
        return losses

    async def train(self, training: Training) -> Trained:
        """Trains one block on one replica; see `ScorerPool.train`."""
        response = self._scorers.train.remote(training)
        trained: Trained = await _answered(response, training.run_id, FileNotFoundError)
        return trained

    async def load(self, models: ScoringModels) -> LoadReport:
        """Asks every replica to load `models`; a replica that fails or is slow is not counted as loaded."""
        response = self._scorers.broadcast("load", models)
        try:
            async with asyncio.timeout(self._load_timeout_s + _ANSWER_MARGIN_S):
                results = await response.results_async(return_exceptions=True)
        except (TimeoutError, RayServeException, RayError) as error:
            logger.warning("run %s: not every scorer loaded new weights: %r", models.run_id, error)
            return LoadReport(loaded=0, asked=0)
        reports = [result for result in results if isinstance(result, LoadReport)]
        return LoadReport(loaded=sum(report.loaded for report in reports), asked=len(results))

    def deployed(self) -> Deployed | None:
        """Asks Serve's controller, which may hang; see `ScorerPool.deployed`."""
        try:
            status = serve.status()
        except (RayServeException, RayError) as error:
            logger.warning("Serve does not tell how many scorers there are: %r", error)
            return None
        application = status.applications.get(self._scorers.deployment_id.app_name)
        if application is None or self._scorers.deployment_name not in application.deployments:
            return None
        replicas = application.deployments[self._scorers.deployment_name].replica_states.items()
        running = self._running = sum(count for state, count in replicas if state == "RUNNING")
        return Deployed(
            target=sum(count for state, count in replicas if state != "STOPPING"),
            running=running,
            updating={name: deployment.status == "UPDATING" for name, deployment in application.deployments.items()},
        )

    async def close(self) -> None:
        """Does nothing: Serve owns the scorers."""


async def _answered(
    response: DeploymentResponse[Any] | DeploymentResponseGenerator[Any], run_id: str, *expected: type[Exception]
) -> Any:
    """Returns what a replica answers; its errors of ours, and those that are expected, as they are."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except _UNREACHABLE as error:
        raise ScorerUnreachableError("no scorer took it") from error  # not logged: that goes on until one does
    except RayTaskError as error:
        cause: Exception = error.cause
        if isinstance(cause, (PreceptorError, ScorerLostError, *expected)):
            raise cause from None
        raise failure(error, run_id) from error
    except (RayError, RayServeException) as error:
        logger.warning("run %s: a scorer was lost: %r", run_id, error)
        raise ScorerLostError("a scorer was lost") from error
