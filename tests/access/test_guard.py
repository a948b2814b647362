"""The guard denies by default: an rpc without a rule, and a call that nothing authorised."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from preceptor.errors import PermissionDeniedError
from preceptor.wire import Method, methods
from preceptor_service.access.audit import AuditLog
from preceptor_service.access.authenticator import Authenticator
from preceptor_service.access.caller import NOBODY, current_caller
from preceptor_service.gateway.guard import Guard
from preceptor_service.run_access import RunAccess
from preceptor_service.run_store import RunStore
from preceptor_service.weight_store import WeightStore


@pytest.mark.parametrize("method", list(methods()), ids=lambda method: method.name)
def test_an_rpc_without_a_rule_is_denied_even_where_nobody_has_to_say_who_they_are(
    tmp_path: Path, method: Method
) -> None:
    guard = Guard(
        Authenticator(None, lambda source: None),
        RunAccess(RunStore(tmp_path), WeightStore(tmp_path, 2, 1000), 1),
        AuditLog(None, to_standard_error=False),
        max_streams_per_identity=1,
        recheck_s=1.0,
        silence_s=1.0,
        rules={},
    )

    async def implementation(request: Any, context: grpc.aio.ServicerContext) -> None:
        pytest.fail("it was called")

    with pytest.raises(PermissionDeniedError, match=f"{method.name} is not open to anybody"):
        asyncio.run(guard.serve(method, implementation, lambda: None, cast(grpc.aio.ServicerContext, None)))


def test_a_task_that_no_call_stands_behind_may_do_nothing() -> None:
    assert current_caller.get() is NOBODY
    assert not NOBODY.may("score", "run", None)
