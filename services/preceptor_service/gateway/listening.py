"""`new_server`: a `grpc.aio` server that survives whatever path it is asked for. Called by `GatewayServer`.

The loop in which grpc.aio 1.85 takes calls decodes the path of every call that is for no registered method, and
ends, for good, with the first that is not UTF-8: one frame of a stranger, and nobody is listened to any more. Here
every method is registered, and a call for any other is answered UNIMPLEMENTED without a look at its path. Older
versions decode it within the call itself, and are left as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from grpc._cython import cygrpc

Handlers = Mapping[str, Mapping[str, grpc.RpcMethodHandler]]
"""Full service name → name of the rpc → its handler."""


def new_server(options: Sequence[tuple[str, int]], handlers: Handlers) -> grpc.aio.Server:
    """Returns a server of `handlers`, not started. `add_*_to_server` of generated stubs may follow."""
    server = grpc.aio.server(options=list(options))
    if hasattr(cygrpc.AioServer, "_make_request_call_future"):
        server._server = _Server(asyncio.get_running_loop(), None, (), (), tuple(options), None)
        for service, methods in handlers.items():
            server.add_registered_method_handlers(service, dict(methods))
    else:
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, methods) for service, methods in handlers.items()]
        )
    return server


class _Server(cygrpc.AioServer):  # type: ignore[misc]
    """Keeps the calls for methods that it does not have out of grpc.aio's own loop."""

    def _make_request_call_future(self, method: bytes | None) -> Any:
        if method is not None:
            return super()._make_request_call_future(method)
        return asyncio.create_task(self._refuse_unknown())

    async def _refuse_unknown(self) -> None:
        """Ends as `_request_call` does when the server is shut down."""
        loop, nothing = asyncio.get_running_loop(), cygrpc._MethodResolver([], {})
        refusals: set[asyncio.Task[None]] = set()  # the event loop itself keeps no task alive
        while True:
            call = await self._request_call()
            refusal = cygrpc._handle_rpc("", nothing, (), call, loop, False)
            task = asyncio.create_task(cygrpc._schedule_rpc_coro(refusal, call, loop, ""))
            refusals.add(task)
            task.add_done_callback(refusals.discard)
