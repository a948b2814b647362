"""Exceptions to gRPC status, in this one place."""

from __future__ import annotations

import logging
from typing import NoReturn

import grpc

from preceptor.errors import (
    REASON_METADATA_KEY,
    RETRY_AFTER_METADATA_KEY,
    InternalError,
    OverloadedError,
    PreceptorError,
)

_MAX_TEXT_BYTES = 1024

logger = logging.getLogger(__name__)


def as_preceptor_error(error: Exception, doing: str) -> PreceptorError:
    """Returns `error` where it is one of ours; logs anything else and hides it behind `InternalError`."""
    if isinstance(error, PreceptorError):
        return error
    logger.error("%s failed", doing, exc_info=error)
    return InternalError(f"{doing} failed inside the service; its log says why")


def text_of(error: PreceptorError) -> str:
    """Returns what a caller is told of `error`: at most 1 KiB of UTF-8, ending in `…` where that is not all of it."""
    # What gRPC carries behind an answer, three bytes for one that is not ASCII, has to stay below 8 KiB.
    text = str(error)[: _MAX_TEXT_BYTES + 1].encode(errors="replace")
    if len(text) <= _MAX_TEXT_BYTES:
        return text.decode()
    return text[: _MAX_TEXT_BYTES - len("…".encode())].decode(errors="ignore") + "…"


async def abort(context: grpc.aio.ServicerContext, error: PreceptorError) -> NoReturn:
    """Ends a call with the status, the text and the reason of `error`, and when to try again."""
    trailing = [(REASON_METADATA_KEY, error.reason)]
    if isinstance(error, OverloadedError) and error.retry_after_s is not None:
        trailing.append((RETRY_AFTER_METADATA_KEY, str(round(error.retry_after_s * 1000))))
    await context.abort(grpc.StatusCode[error.code], text_of(error), tuple(trailing))
    raise AssertionError("abort returned")
