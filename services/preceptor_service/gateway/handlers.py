"""The contract's methods bound to our services: deserialisers that never throw, errors mapped once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message

from preceptor.errors import InvalidMessageError, OverloadedError, PreceptorError
from preceptor.wire import Method, methods
from preceptor_service.gateway.guard import Guard
from preceptor_service.gateway.listening import Handlers
from preceptor_service.gateway.status import abort, as_preceptor_error
from preceptor_service.metrics import GatewayMetrics

Context: TypeAlias = grpc.aio.ServicerContext


class _Malformed:
    """Stands for bytes that are not the message they should be: grpc.aio would answer UNKNOWN."""


def rpc_handlers(services: Mapping[str, object], guard: Guard, metrics: GatewayMetrics) -> Handlers:
    """Returns the handlers of every rpc of the contract.

    Args:
        services: full service name → object with one coroutine method per rpc, in snake case:
            `(request, context) -> response`, `(requests, context) -> response`, or, writing a stream of answers to the
            context, `(request, context) -> None` and `(requests, context) -> None`.
        guard: lets calls through.
        metrics: counts errors by code.
    """
    by_service: dict[str, dict[str, grpc.RpcMethodHandler]] = defaultdict(dict)
    for method in methods():
        implementation = getattr(services[method.service], _snake_case(method.name))
        by_service[method.service][method.name] = _handler(method, implementation, guard, metrics)
    return by_service


def _handler(
    method: Method, implementation: Callable[[Any, Context], Awaitable[Any]], guard: Guard, metrics: GatewayMetrics
) -> grpc.RpcMethodHandler:
    async def call(request: Any, context: Context) -> Any:
        try:
            checked = partial(_checked_stream if method.client_streaming else _checked, request, method)
            return await guard.serve(method, implementation, checked, context)
        except asyncio.CancelledError:
            raise
        except grpc.aio.InternalError as error:  # it cannot write: the caller is gone, and gRPC about to say so
            raise asyncio.CancelledError from error
        except PreceptorError as error:
            raised = error
        except Exception as error:  # noqa: BLE001 - the edge: nothing may cross it untranslated
            raised = as_preceptor_error(error, method.name)
        metrics.errors.labels(method=method.name, code=raised.code).inc()
        if isinstance(raised, OverloadedError) and raised.limit is not None:
            metrics.throttled.labels(raised.limit).inc()
        return await abort(context, raised)

    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    return kinds[method.client_streaming, method.server_streaming](
        call, request_deserializer=_parser(method), response_serializer=method.response.SerializeToString
    )


def _parser(method: Method) -> Callable[[bytes], Message | _Malformed]:
    def parse(data: bytes) -> Message | _Malformed:
        try:
            return method.request.FromString(data)
        except (DecodeError, ValueError, RecursionError):
            return _Malformed()

    return parse


def _checked(request: Message | _Malformed, method: Method) -> Message:
    if isinstance(request, _Malformed):
        raise InvalidMessageError(f"the bytes are not a {method.request.DESCRIPTOR.full_name}")
    return request


async def _checked_stream(requests: AsyncIterator[Message | _Malformed], method: Method) -> AsyncIterator[Message]:
    async for request in requests:
        yield _checked(request, method)


def _snake_case(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
