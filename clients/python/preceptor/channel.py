"""The connection to one gateway address, and the one place where a `grpc.RpcError` becomes a `PreceptorError`.

Used by `client.py`, `stream.py` and `weights.py`; nothing else in the client touches gRPC.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from preceptor.errors import (
    REASON_METADATA_KEY,
    RETRY_AFTER_METADATA_KEY,
    ClosedError,
    DeadlineExceededError,
    OverloadedError,
    PreceptorError,
    UnauthenticatedError,
    UnavailableError,
    error_from,
)
from preceptor.wire import Method, methods

# The scores of 10^6 candidates return in one message of some 12 MB; this leaves room for twenty times that.
_MAX_RECEIVE_BYTES = 256 * 1024 * 1024

LONGEST_BACKOFF_S = 2.0
"""The longest pause between two tries, of streams and of the connection itself."""

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", _MAX_RECEIVE_BYTES),
    # What may be sent is the gateway's to say: SelectOpened.max_chunk_bytes.
    ("grpc.max_send_message_length", -1),
    # A trainer may train for long between two super-batches, and has to know that its gateway is gone all the same.
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC cannot resend a stream; stream.py and weights.py resume with idempotent identities instead.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", int(LONGEST_BACKOFF_S * 1000)),
    # It is also how long one try to connect may take.
    ("grpc.min_reconnect_backoff_ms", 4_000),
    # Without its own pool a client inherits the connection and the back-off of another client in the process.
    ("grpc.use_local_subchannel_pool", 1),
]

_SHORTEST_SILENCE_S, _LONGEST_SILENCE_S = 4.0, 12.0

_BACKOFF_FIRST_S = 0.05

_HEALTH_PATH = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"
"""A `HealthCheckResponse` whose status is SERVING."""

_METHODS: dict[str, Method] = {method.name: method for method in methods()}
_TARGET = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\[\]:/\s]+):(?P<port>\d{1,5})")
# A transport that breaks speaks these codes and, unlike a gateway, adds no reason.
_TRANSPORT_CODES = frozenset({"CANCELLED", "INTERNAL", "DEADLINE_EXCEEDED"})

_UNSENDABLE = "has characters beyond printable ASCII, which no header carries, such as a line end; strip it"

M = TypeVar("M", bound=Message)

_log = logging.getLogger("preceptor")


@dataclass(frozen=True)
class Tls:
    """TLS settings, each PEM-encoded.

    Attributes:
        root_certificates: authorities to trust; None: gRPC's default roots.
        private_key: the trainer's key, for mutual TLS; together with `certificate_chain`.
        certificate_chain: the trainer's certificate, for mutual TLS.
        server_name: name that the gateway's certificate bears, where it is not that of the target: behind a port
            forward, or for a probe beside the gateway.
    """

    root_certificates: bytes | None = None
    private_key: bytes | None = field(default=None, repr=False)
    certificate_chain: bytes | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ValueError("mutual TLS needs both private_key and certificate_chain; one of them is None")


@dataclass(frozen=True)
class RpcFailure:
    """How one rpc ended, other than well.

    Attributes:
        error: the same, in the client's own tree.
        is_transport: the connection broke or the gateway goes away; repeating on a new one makes sense.
    """

    error: PreceptorError
    is_transport: bool

    @property
    def retry_after_s(self) -> float | None:
        """How long the gateway asks to be left alone before the same is tried again; None where it does not say."""
        return self.error.retry_after_s if isinstance(self.error, OverloadedError) else None


def rpc_failure(raised: grpc.RpcError, what: str) -> RpcFailure:
    """Returns what `raised` means: code, reason from the trailing metadata, and details.

    Args:
        raised: as caught from a call.
        what: which call to which address, put in front where the gateway itself said nothing.
    """
    # A call's own exception is the call itself, whose state is known once it has raised.
    status = raised.code() if isinstance(raised, grpc.Call) else None
    code = status.name if status is not None else "UNKNOWN"
    details = (raised.details() if isinstance(raised, grpc.Call) else str(raised)) or code
    reason, retry_after_ms = _trailing(raised, REASON_METADATA_KEY), _trailing(raised, RETRY_AFTER_METADATA_KEY)
    message = details if reason is not None else f"{what}: {details}"
    is_transport = code == "UNAVAILABLE" or (reason is None and code in _TRANSPORT_CODES)
    retry_after_s = int(retry_after_ms) / 1000 if retry_after_ms is not None and retry_after_ms.isdecimal() else None
    return RpcFailure(error_from(code, reason, message, retry_after_s), is_transport)


def _trailing(raised: grpc.RpcError, wanted: str) -> str | None:
    metadata = (raised.trailing_metadata() or ()) if isinstance(raised, grpc.Call) else ()
    for key, value in metadata:
        if key == wanted:
            return str(value)
    return None


def backoff_s(failures: int) -> float:
    """Returns how long to wait after so many failures in a row (1 or more): 0.05 s doubled up to 2 s, with jitter."""
    longest_s = min(LONGEST_BACKOFF_S, _BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 10))
    return longest_s * random.uniform(0.5, 1.0)


def retry_s(retry_after_s: float) -> float:
    """Returns how long to wait where a gateway asked for `retry_after_s`: that, and up to as much again."""
    return retry_after_s * random.uniform(1.0, 2.0)


class Connection:
    """One channel to one address, with credentials; safe to use from any thread of the process that opened it.

    Args:
        target: `"host:port"`; an IPv6 address in brackets.
        token: sent as `authorization: Bearer`; refused without TLS unless the host is this machine. A function is
            asked before each call, from any thread, for a token that may have been renewed; it must not block.
        tls: None for plaintext.
        timeout_s: of most calls. After half of it, at least 4 s and at most 12 s, a silent connection is given up, so
            that there is time to ask elsewhere.

    Raises:
        ValueError: `target` is not `"host:port"`, a token would travel in the clear, or no header can carry it.
    """

    def __init__(self, target: str, token: str | Callable[[], str] | None, tls: Tls | None, timeout_s: float) -> None:
        host = _host(target)
        if token is not None and tls is None and not _is_loopback(host):
            raise ValueError(
                f"a token for {target} would travel unencrypted; pass tls=Tls(...), or drop the token. "
                "Without TLS a token is only sent to this machine (localhost, 127.0.0.0/8, ::1)"
            )
        if isinstance(token, str) and not _is_sendable(token):
            raise ValueError(f"the token for {target} {_UNSENDABLE}")
        self.target = target
        self._token = token
        self._pid = os.getpid()
        self._closed = False
        options = [*_OPTIONS, *_heartbeat(timeout_s)]
        if tls is None:
            self._channel = grpc.insecure_channel(target, options=options)
        else:
            credentials = grpc.ssl_channel_credentials(tls.root_certificates, tls.private_key, tls.certificate_chain)
            named = [] if tls.server_name is None else [("grpc.ssl_target_name_override", tls.server_name)]
            self._channel = grpc.secure_channel(target, credentials, options=[*options, *named])
        self._calls = {name: self._callable(method) for name, method in _METHODS.items()}
        # By hand, since a trainer's installation has no stubs of grpc.health.v1: the request for all services is empty.
        self._health = self._channel.unary_unary(_HEALTH_PATH, lambda _: b"", lambda answer: answer == _SERVING)

    def check_usable(self) -> None:
        """Raises `RuntimeError` in a process other than the opener's, and `ClosedError` after `close`."""
        if not self.is_own_process:
            raise RuntimeError(
                f"this SelectionClient was opened in process {self._pid} and is used in process {os.getpid()}, after a "
                "fork; gRPC does not survive that. Select in the training process, not in a DataLoader worker, or "
                "open a SelectionClient in a process that is spawned, not forked"
            )
        if self._closed:
            raise ClosedError(f"the client of {self.target} is closed; open a new SelectionClient")

    @property
    def renews_token(self) -> bool:
        """Whether a call may carry another token than the one before."""
        return callable(self._token)

    @property
    def is_own_process(self) -> bool:
        """Whether this is the process that opened the connection, not a fork of it."""
        return os.getpid() == self._pid

    def unary(self, name: str, request: Message | Iterator[Message], response: type[M], timeout_s: float) -> M:
        """Calls an rpc with one answer; blocks at most `timeout_s`.

        Raises:
            PreceptorError: whatever the gateway or the network said.
        """
        answer, failure = self.try_unary(name, request, response, timeout_s)
        if failure is not None or answer is None:
            raise (failure.error if failure is not None else PreceptorError(f"{name} gave no answer"))
        return answer

    def try_unary(
        self, name: str, request: Message | Iterator[Message], response: type[M], timeout_s: float
    ) -> tuple[M | None, RpcFailure | None]:
        """As `unary`, but returns a failure instead of raising it, for callers that repeat."""
        self.check_usable()
        try:
            answer = self._calls[name](request, timeout=timeout_s, metadata=self._metadata())
        except grpc.RpcError as raised:
            return None, rpc_failure(raised, f"{name} to {self.target}")
        except ValueError as raised:
            return None, RpcFailure(self._closed_meanwhile(raised), is_transport=False)
        if not isinstance(answer, response):
            raise TypeError(f"{name} answers {type(answer).__name__}, not {response.__name__}")
        return answer, None

    def repeated_unary(
        self,
        name: str,
        request: Callable[[], Message | Iterator[Message]],
        response: type[M],
        timeout_s: float,
        what: str,
    ) -> M:
        """As `unary`, for a call that may be repeated, until `timeout_s` has passed.

        Repeated where the service is unavailable, and where it is overloaded and says when to come back. Waits between
        tries in the caller's thread.

        Args:
            name: of the rpc.
            request: makes the request, or the stream of requests, of each try.
            response: type of the answer.
            timeout_s: for all tries together.
            what: is not done, for the error, e.g. `"weights of step 3 were not taken"`.

        Raises:
            UnavailableError: no try was answered in time.
            OverloadedError: the service had no place in time.
            PreceptorError: whatever else the gateway said.
        """
        deadline = time.monotonic() + timeout_s
        failures = 0
        last: RpcFailure | None = None
        while (remaining_s := deadline - time.monotonic()) > 0:
            answer, failure = self.try_unary(name, request(), response, remaining_s)
            if answer is not None:
                return answer
            if failure is not None and not _may_repeat(failure):
                raise failure.error
            if last is None:
                _log.warning("%s yet, tried again for %g s: %s", what, timeout_s, failure.error if failure else name)
            last = failure
            failures += 1
            asked_s = retry_s(failure.retry_after_s or 0.0) if failure is not None else 0.0
            time.sleep(max(0.0, min(max(backoff_s(failures), asked_s), deadline - time.monotonic())))
        why = last.error if last is not None else "no attempt was made"
        told = f"{what} by {self.target} within {timeout_s:g} s; last: {why}"
        if isinstance(why, OverloadedError):
            raise OverloadedError(told, retry_after_s=why.retry_after_s)
        raise UnavailableError(told)

    def is_serving(self, timeout_s: float) -> bool:
        """Asks the gateway for its health; blocks at most `timeout_s`.

        Raises:
            PreceptorError: it did not answer.
        """
        self.check_usable()
        try:
            serves: bool = self._health(None, timeout=timeout_s)
        except grpc.RpcError as raised:
            raise rpc_failure(raised, f"Health to {self.target}").error from None
        except ValueError as raised:
            raise self._closed_meanwhile(raised) from None
        return serves

    def stream(
        self,
        name: str,
        requests: Iterator[Message] | Message,
        timeout_s: float | None = None,
        waits_for_connection: bool = False,
    ) -> Any:
        """Starts a call with a stream of answers and returns gRPC's call: iterate for responses, `cancel()` to end it.

        Does not block. Ends after `timeout_s`, where that is given; and at once where nothing can be connected to,
        unless it `waits_for_connection`.

        Raises:
            ClosedError: the client was closed.
            UnauthenticatedError: the function that returns the token failed.
        """
        self.check_usable()
        try:
            return self._calls[name](
                requests, timeout=timeout_s, metadata=self._metadata(), wait_for_ready=waits_for_connection
            )
        except ValueError as raised:
            raise self._closed_meanwhile(raised) from None

    def close(self) -> None:
        """Ends all calls; does nothing in a fork, whose copy of the channel is not alive."""
        self._closed = True
        if self.is_own_process:
            self._channel.close()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        if self._token is None:
            return ()
        try:
            token = self._token() if callable(self._token) else self._token
        except Exception as error:
            raise UnauthenticatedError(f"the function that returns the token raised {type(error).__name__}") from error
        value = f"Bearer {token}"
        if not _is_sendable(value):
            raise UnauthenticatedError(f"the token that the function returned {_UNSENDABLE}")
        return (("authorization", value),)

    def _closed_meanwhile(self, raised: ValueError) -> ClosedError:
        # gRPC says "Cannot invoke RPC on closed channel!" by ValueError.
        if not self._closed:
            raise raised
        return ClosedError(f"the client of {self.target} was closed while a call began; open a new SelectionClient")

    def _callable(self, method: Method) -> Any:
        factory = {
            (False, False): self._channel.unary_unary,
            (True, False): self._channel.stream_unary,
            (False, True): self._channel.unary_stream,
            (True, True): self._channel.stream_stream,
        }[method.client_streaming, method.server_streaming]
        return factory(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )


def _may_repeat(failure: RpcFailure) -> bool:
    if failure.retry_after_s is not None:
        return True
    return failure.is_transport and not isinstance(failure.error, DeadlineExceededError)


def _heartbeat(timeout_s: float) -> list[tuple[str, int]]:
    """Pings after half of the longest silence; the rest of it is for the answer."""
    half_ms = round(500 * min(_LONGEST_SILENCE_S, max(_SHORTEST_SILENCE_S, timeout_s / 2)))
    # gRPC 1.85 waits for ping_timeout_ms, a minute by default, and older ones for keepalive_timeout_ms.
    names = ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")
    return [(name, half_ms) for name in names]


def _host(target: str) -> str:
    match = _TARGET.fullmatch(target)
    if match is None or int(match["port"]) > 65_535:
        raise ValueError(f"target is {target!r}; give 'host:port', e.g. 'localhost:7600' or '[::1]:7600'")
    return match["host"].strip("[]")


def _is_sendable(value: str) -> bool:
    return value.isascii() and value.isprintable()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
