"""`HealthService`: `grpc.health.v1`, for probes and load balancers, which need not say who they are.

Not the one of `grpc_health`: that takes any number of watchers, and one that leaves or does not read keeps the others
from being told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from preceptor.errors import NotFoundError, OverloadedError, UnavailableError
from preceptor_service.gateway.sending import send
from preceptor_service.gateway.status import abort

Context: TypeAlias = grpc.aio.ServicerContext

MAX_WATCHERS = 256
"""Calls of Watch at once, over all callers. Check has no such bound: it holds nothing."""

_RETRY_S = 1.0
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """A gateway serves, all of it, until it drains. Lives on one event loop.

    Args:
        services: full names; the gateway itself is "".
        silence_s: how long a watcher may take for one message.
    """

    def __init__(self, services: Iterable[str], silence_s: float) -> None:
        self._names = frozenset(("", *services))
        self._silence_s = silence_s
        self._draining = asyncio.Event()
        self._watchers = 0

    def drain(self) -> None:
        """Says from now on that nothing is served, tells watchers, and ends their calls. Does not wait for them."""
        self._draining.set()

    async def Check(  # noqa: N802 - the contract's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Answers whether a service is served; NOT_FOUND where there is none of that name."""
        if request.service not in self._names:
            await abort(context, NotFoundError("there is no such service"))
        return self._response()

    async def Watch(  # noqa: N802 - the contract's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> None:
        """Tells whether a service is served, and when that ends; of an unknown one, that it is unknown."""
        if self._watchers >= MAX_WATCHERS:
            overloaded = f"{self._watchers} calls watch the health, as many as may; try again later, or use Check"
            await abort(context, OverloadedError(overloaded, retry_after_s=_RETRY_S))
        self._watchers += 1
        # Not when we are done with it: of a watcher that does not read, gRPC keeps the status.
        context.add_done_callback(self._ended)
        try:
            await self._watched(request.service in self._names, context)
        except grpc.aio.InternalError as error:  # it cannot write: the caller is gone, and gRPC about to say so
            raise asyncio.CancelledError from error
        except UnavailableError as error:
            await abort(context, error)

    async def _watched(self, is_known: bool, context: Context) -> None:
        is_draining = self._draining.is_set()
        await send(context, self._response() if is_known else _message(_UNKNOWN), self._silence_s)
        await self._draining.wait()
        if is_known and not is_draining:
            await send(context, self._response(), self._silence_s)

    def _ended(self, context: Context) -> None:
        self._watchers -= 1

    def _response(self) -> health_pb2.HealthCheckResponse:
        return _message(_NOT_SERVING if self._draining.is_set() else _SERVING)


def _message(status: health_pb2.HealthCheckResponse.ServingStatus.ValueType) -> health_pb2.HealthCheckResponse:
    return health_pb2.HealthCheckResponse(status=status)
