"""Exceptions to gRPC status, in this one place."""

from __future__ import annotations

import logging
from typing import NoReturn

import grpc

from preceptor.errors import REASON_METADATA_KEY, InternalError, PreceptorError

logger = logging.getLogger(__name__)


def as_preceptor_error(error: Exception, doing: str) -> PreceptorError:
    """Returns `error` where it is one of ours; logs anything else and hides it behind `InternalError`."""
    if isinstance(error, PreceptorError):
        return error
    logger.error("%s failed", doing, exc_info=error)
    return InternalError(f"{doing} failed inside the service; its log says why")


async def abort(context: grpc.aio.ServicerContext, error: PreceptorError) -> NoReturn:
    """Ends a call with the status, the text and the reason of `error`."""
    await context.abort(grpc.StatusCode[error.code], str(error), ((REASON_METADATA_KEY, error.reason),))
    raise AssertionError("abort returned")
