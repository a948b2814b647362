"""`Guard`: every rpc passes here first: who calls, may it, and may it still.

The one place where calls are authenticated, authorised, counted per caller and written into the audit log.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NoReturn, TypeAlias
from weakref import WeakValueDictionary

import grpc

from preceptor.errors import (
    InvalidMessageError,
    OverloadedError,
    PermissionDeniedError,
    PreceptorError,
    UnauthenticatedError,
)
from preceptor.wire import Method
from preceptor_service.access.audit import AuditLog
from preceptor_service.access.authenticator import Authenticator, Credentials
from preceptor_service.access.caller import NOBODY, Caller, current_caller
from preceptor_service.access.certificates import parse_peer
from preceptor_service.gateway.access_rules import RULES, Rule
from preceptor_service.gateway.body import next_message
from preceptor_service.run_access import RunAccess

Context: TypeAlias = grpc.aio.ServicerContext
Implementation: TypeAlias = Callable[[Any, Context], Awaitable[Any]]

_SHORTEST_WAIT_S = 0.05
_STORE_S = 2.0
"""How long the store may take to tell whose run it is, before what it told last counts."""
_STREAM_RETRY_S = 1.0


class Guard:
    """Lets calls through to the services, or refuses them.

    Lives on one event loop.

    Args:
        authenticator: knows callers.
        runs: knows what they may do.
        audit: takes a line for each push, creation and deletion, and each reading of a ledger.
        max_streams_per_identity: open streaming calls of one caller.
        recheck_s: longest time until an open stream notices that its caller lost a right.
        silence_s: how long the first message of a stream may take.
        rules: by path; for tests.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        runs: RunAccess,
        audit: AuditLog,
        max_streams_per_identity: int,
        recheck_s: float,
        silence_s: float,
        rules: Mapping[str, Rule] = RULES,
    ) -> None:
        self._authenticator = authenticator
        self._runs = runs
        self._audit = audit
        self._max_streams = max_streams_per_identity
        self._recheck_s = recheck_s
        self._silence_s = silence_s
        self._rules = rules
        self._streams: Counter[str] = Counter()
        self._creating: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def serve(
        self, method: Method, implementation: Implementation, request: Callable[[], Any], context: Context
    ) -> Any:
        """Answers one call by `implementation`, where its caller may make it.

        Args:
            method: the rpc.
            implementation: answers it.
            request: returns the message, or the stream of messages; raises where they are malformed.
            context: of the call.

        Raises:
            UnauthenticatedError: the caller shows nothing valid, or no longer.
            PermissionDeniedError: the caller may not, or no longer.
            OverloadedError: the caller has too many streams or runs.
            PreceptorError: whatever `implementation` raises.
        """
        rule = self._rules.get(method.path)
        if rule is None:
            raise PermissionDeniedError(f"{method.name} is not open to anybody; it has no rule")
        call = _Call(self._authenticator, self._runs, rule, self._recheck_s)
        code, response = "UNKNOWN", None
        try:
            await call.authenticate(_credentials(context, self._authenticator.is_required))
            response = await self._answer(call, method, implementation, request, context)
            code = "OK"
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except PreceptorError as error:
            code = error.code
            raise
        except Exception:
            code = "INTERNAL"
            raise
        finally:
            if rule.digest is not None and call.is_known:
                self._audit.write(
                    method.name,
                    run=call.run_id or None,
                    identity=call.caller.identity,
                    peer=context.peer(),
                    code=code,
                    digest=rule.digest(call.first, response),
                )
        return response

    async def _answer(
        self,
        call: _Call,
        method: Method,
        implementation: Implementation,
        request: Callable[[], Any],
        context: Context,
    ) -> Any:
        token = current_caller.set(call.caller)
        try:
            if not method.client_streaming and not method.server_streaming:
                async with self._one_creation(call):
                    await call.authorise(request())
                    return await implementation(call.first, context)
            with self._counted(call.caller):
                if not method.client_streaming:
                    await call.authorise(request())
                    return await call.while_allowed(implementation(call.first, context))
                requests = request()
                if self._authenticator.is_required:
                    await call.authorise(await next_message(requests, self._silence_s))
                    work = implementation(call.watched(requests), context)
                else:
                    work = implementation(call.noted(requests), context)
                return await (call.while_allowed(work) if method.server_streaming else work)
        finally:
            current_caller.reset(token)

    def _one_creation(self, call: _Call) -> asyncio.Lock | nullcontext[None]:
        """One creation at a time for each caller, so that its runs are counted before the next one is added."""
        if call.rule.role != "create" or call.caller.identity is None:
            return nullcontext()
        return self._creating.setdefault(call.caller.identity, asyncio.Lock())

    @contextmanager
    def _counted(self, caller: Caller) -> Iterator[None]:
        identity = caller.identity
        if identity is None:
            yield
            return
        if self._streams[identity] >= self._max_streams:
            raise OverloadedError(
                f"{identity} has {self._streams[identity]} streams open, as many as limits.max_streams_per_identity "
                "allows; try again later",
                limit="limits.max_streams_per_identity",
                retry_after_s=_STREAM_RETRY_S,
            )
        self._streams[identity] += 1
        try:
            yield
        finally:
            self._streams[identity] -= 1
            if not self._streams[identity]:
                del self._streams[identity]


class _Call:
    """One call: who makes it, what it is about, and whether it is still allowed."""

    def __init__(self, authenticator: Authenticator, runs: RunAccess, rule: Rule, recheck_s: float) -> None:
        self.rule = rule
        self.caller = NOBODY
        self.is_known = False
        self.run_id = ""
        self.first: Any = None
        self._authenticator = authenticator
        self._runs = runs
        self._recheck_s = recheck_s
        self._credentials = Credentials()
        self._generation = 0
        self._checked_at = 0.0

    async def authenticate(self, credentials: Credentials) -> None:
        """Finds out who calls."""
        self._generation, self._checked_at = self._authenticator.generation, time.monotonic()
        self._credentials = credentials
        self.caller = await self._authenticator.authenticate(credentials)
        self.is_known = True

    async def authorise(self, first: Any) -> None:
        """Checks the caller's role on the run that the first message names."""
        opening = self.rule.opening
        if opening is not None and first.WhichOneof("kind") != opening:
            expected = first.DESCRIPTOR.fields_by_name[opening].message_type.name
            raise InvalidMessageError(f"the stream does not start with {expected}; send it first")
        self._note(first)
        if self.caller.grants is None:
            return
        if self.rule.role == "create":
            digest = first.spec.reference_digest if first.spec.HasField("reference_digest") else None
            await asyncio.to_thread(self._runs.check_creation, self.caller, self.run_id, digest)
        else:
            await self._check_role()

    async def noted(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Yields all messages and notes the first one, where nobody is restricted."""
        async for request in requests:
            if self.first is None:
                self._note(request)
            yield request

    async def watched(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Yields the first message and those that follow, as long as the caller is allowed to send them."""
        yield self.first
        async for request in requests:
            if self._is_in_doubt():
                await self._recheck()
            yield request

    async def while_allowed(self, work: Awaitable[Any]) -> Any:
        """Awaits `work`, and cancels it once the caller loses its right."""
        serving = asyncio.ensure_future(work)
        if not self._authenticator.is_required:
            return await serving
        watching = asyncio.create_task(self._watch())
        try:
            await asyncio.wait({serving, watching}, return_when=asyncio.FIRST_COMPLETED)
            return serving.result() if serving.done() else watching.result()
        finally:
            serving.cancel()
            watching.cancel()
            await asyncio.wait({serving, watching})

    async def _watch(self) -> NoReturn:
        while True:
            left_s = self.caller.expires_at - time.time()
            await asyncio.sleep(max(_SHORTEST_WAIT_S, min(self._recheck_s, left_s)))
            await self._recheck()

    def _note(self, first: Any) -> None:
        self.run_id, self.first = self.rule.run_id(first), first

    def _is_in_doubt(self) -> bool:
        return self._authenticator.is_required and (
            self._generation != self._authenticator.generation
            or self.caller.expires_at <= time.time()
            or time.monotonic() - self._checked_at > self._recheck_s
        )

    async def _recheck(self) -> None:
        before = self.caller.identity
        await self.authenticate(self._credentials)
        if self.caller.identity != before:
            raise UnauthenticatedError("the token belongs to somebody else now; connect again")
        await self._check_role()

    async def _check_role(self) -> None:
        if self.rule.role is not None:
            check = partial(self._runs.check, self.caller, self.rule.role, self.run_id)
            try:
                async with asyncio.timeout(_STORE_S):
                    await asyncio.to_thread(check)
            except TimeoutError:
                check(is_afresh=False)


def _credentials(context: Context, reads_token: bool) -> Credentials:
    pem = next(iter(context.auth_context().get("x509_pem_cert", ())), None)
    certificate = parse_peer(pem) if pem else None
    headers = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    if not headers or not reads_token:
        return Credentials(None, certificate)
    scheme, _, token = str(headers[0]).partition(" ")
    if len(headers) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise UnauthenticatedError("the metadata 'authorization' is not one 'Bearer <token>'")
    return Credentials(token.strip(), certificate)
