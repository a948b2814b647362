"""Child process: a `grpc.aio` server that takes bytes in one message and answers as many as a selection has."""

from __future__ import annotations

import asyncio
import sys

import grpc

from benchmarks.processes import requests, say

METHOD = "/preceptor.benchmarks.Bare/Take"
OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


async def main(answer_bytes: int) -> None:
    """Serves until the parent closes the pipe."""
    answer = bytes(answer_bytes)

    async def take(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return answer

    server = grpc.aio.server(options=OPTIONS)
    _, service, method = METHOD.split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(take)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    say(grpc=port)
    await asyncio.to_thread(lambda: list(requests()))
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
