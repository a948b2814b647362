"""`send`: one message of a stream of answers, to a caller that may not take it. Called by services that stream."""

from __future__ import annotations

import asyncio

import grpc
from google.protobuf.message import Message

from preceptor.errors import UnavailableError


async def send(context: grpc.aio.ServicerContext, message: Message, silence_s: float) -> None:
    """Writes `message`; one at a time on each stream.

    Raises:
        UnavailableError: the caller did not take it within `silence_s`.
    """
    try:
        async with asyncio.timeout(silence_s):
            await context.write(message)
    except TimeoutError:
        raise UnavailableError(f"no answer was taken for {silence_s:g} s; connect again and read them") from None
