"""A stream lasts no longer than its caller's rights; limits per caller."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from preceptor import SelectionClient
from preceptor.errors import OverloadedError, PermissionDeniedError, UnauthenticatedError
from tests.access import calls
from tests.access.conftest import GRANTS, Guarded, replace
from tests.access.provider import Provider, key_set
from tests.service import digits
from tests.service.conftest import Metrics, wait_until
from tests.service.raw import METHODS, push_messages, select_open, super_batch


class Stream:
    """One call of a streaming rpc that stays open."""

    def __init__(self, opened: grpc.Channel, name: str, token: str | None, *messages: Message) -> None:
        method = METHODS[name]
        self._requests: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self.send(*messages)
        start = opened.stream_stream if method.server_streaming else opened.stream_unary
        stub = start(method.path, method.request.SerializeToString, method.response.FromString)
        self._is_answered_many_times = method.server_streaming
        requests: Iterator[Message] = iter(self._requests.get, None)
        call = stub if method.server_streaming else stub.future
        self.call: Any = call(requests, timeout=calls.TIMEOUT_S, metadata=calls.bearer(token))

    def send(self, *messages: Message) -> None:
        for message in messages:
            self._requests.put(message)

    def answer(self) -> str:
        """The kind of the next answer to a super-batch."""
        while (kind := str(next(self.call).WhichOneof("kind"))) in ("opened", "credit"):
            pass
        return kind

    def end(self) -> str:
        """Waits for the end, and returns its status code."""
        if self._is_answered_many_times:
            with suppress(grpc.RpcError):
                deque(self.call, maxlen=0)  # gRPC tells the status after the last message alone
        code: str = self.call.code().name
        self._requests.put(None)
        return code

    def cancel(self) -> None:
        self.call.cancel()
        self._requests.put(None)


def select(guarded: Guarded, opened: grpc.Channel, token: str | None, run_id: str) -> Stream:
    """An open Select stream on which one super-batch was answered."""
    stream = Stream(opened, "Select", token, select_open(run_id), *super_batch(digits.candidates(1)))
    assert stream.answer() == "selection"
    return stream


@pytest.fixture
def guarded(start_guarded: Callable[..., Guarded]) -> Guarded:
    return start_guarded(limits={"max_streams_per_identity": 3, "max_runs_per_identity": 2})


@pytest.fixture
def opened(guarded: Guarded) -> Iterator[grpc.Channel]:
    with calls.channel(guarded.target) as opened:
        yield opened


_CUTS: dict[str, tuple[str, Callable[[Guarded], None], str]] = {
    "the token is revoked": ("scorer", lambda guarded: guarded.access.write(without="scorer"), "UNAUTHENTICATED"),
    "the role is removed": (
        "scorer",
        lambda guarded: guarded.access.write(grants={**GRANTS, "scorer": {"push": ["*"]}}),
        "PERMISSION_DENIED",
    ),
    "the provider drops its key": (
        "oidc scorer",
        lambda guarded: replace(guarded.keys, key_set(Provider("next").jwk)),
        "UNAUTHENTICATED",
    ),
}


@pytest.mark.parametrize("is_idle", [True, False], ids=["idle", "busy"])
@pytest.mark.parametrize(("caller", "revoke", "code"), _CUTS.values(), ids=_CUTS.keys())
def test_a_stream_is_cut_when_its_caller_loses_its_right(
    guarded: Guarded,
    opened: grpc.Channel,
    run_id: str,
    caller: str,
    revoke: Callable[[Guarded], None],
    code: str,
    is_idle: bool,
) -> None:
    other = select(guarded, opened, guarded.token("owner"), run_id)
    token = guarded.token(caller)
    stream = select(guarded, opened, token, run_id)
    revoke(guarded)
    if not is_idle:
        with calls.channel(guarded.target) as another:
            wait_until(
                lambda: calls.answer(another, "GetRun", run_id, calls.bearer(token)).code == code,
                "new calls are refused",
            )
        stream.send(*super_batch(digits.candidates(2), step=2))
    assert stream.end() == code
    other.send(*super_batch(digits.candidates(9), step=9))
    assert other.answer() == "selection"
    other.cancel()


def test_a_stream_ends_with_its_jwt(guarded: Guarded, opened: grpc.Channel, run_id: str) -> None:
    ends_at = int(time.time()) + 3
    token = guarded.provider.token(groups=["scorers"], exp=ends_at)
    stream = select(guarded, opened, token, run_id)
    assert stream.end() == "UNAUTHENTICATED"
    assert ends_at <= time.time() <= ends_at + 3


def test_a_function_that_returns_a_newer_token_carries_a_client_over_the_end_of_the_first(
    guarded: Guarded, run_id: str
) -> None:
    def token() -> str:
        return guarded.provider.token(groups=["scorers"], exp=int(time.time()) + 2)

    metrics = Metrics(f"http://127.0.0.1:{guarded.service.ports.metrics}/metrics")
    with SelectionClient(guarded.target, token=token, timeout_s=20.0) as client:
        run = client.get_run(run_id)
        run.select(digits.candidates(1), sub_batch_size=4, step=1)
        wait_until(
            lambda: metrics.value("preceptor_errors_total", method="Select", code="UNAUTHENTICATED") >= 1,
            "the first token ended",
        )
        assert len(run.select(digits.candidates(2), sub_batch_size=4, step=2).indices) == 4


def test_a_function_that_fails_to_return_a_token_fails_the_call(guarded: Guarded, run_id: str) -> None:
    def token() -> str:
        raise OSError("secret path")

    with SelectionClient(guarded.target, token=token) as client, pytest.raises(UnauthenticatedError) as raised:
        client.get_run(run_id)
    assert "secret" not in str(raised.value)


def test_a_client_whose_token_was_revoked_is_told_so(guarded: Guarded, run_id: str) -> None:
    with SelectionClient(guarded.target, token=guarded.token("scorer"), timeout_s=20.0) as client:
        run = client.get_run(run_id)
        run.select(digits.candidates(1), sub_batch_size=4, step=1)
        with pytest.raises(PermissionDeniedError):
            run.push_weights(digits.weights(1), step=1)
        guarded.access.write(without="scorer")

        def refused() -> bool:
            try:
                run.status()
            except UnauthenticatedError:
                return True
            return False

        wait_until(refused, "the token is refused")
        with pytest.raises(UnauthenticatedError):
            run.select(digits.candidates(2), sub_batch_size=4, step=2)


def test_an_upload_is_cut_when_its_caller_loses_its_right(guarded: Guarded, opened: grpc.Channel, run_id: str) -> None:
    header, chunk, commit = push_messages(b"x" * 1000, run_id=run_id, step=1)
    stream = Stream(opened, "PushWeights", guarded.token("pusher"), header)
    guarded.access.write(without="pusher")
    with calls.channel(guarded.target) as other:
        wait_until(
            lambda: (
                calls.answer(other, "ListRuns", "", calls.bearer(guarded.token("pusher"))).code == "UNAUTHENTICATED"
            ),
            "the token is refused",
        )
    stream.send(chunk, commit)
    assert stream.end() == "UNAUTHENTICATED"


def test_a_broken_access_file_keeps_the_previous_rights(
    guarded: Guarded, opened: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics(f"http://127.0.0.1:{guarded.service.ports.metrics}/metrics")
    replace(guarded.access.path, b"tokens: [" + (guarded.token("admin") or "").encode())
    wait_until(
        lambda: metrics.value("preceptor_credential_reload_failures_total", source="access_file") >= 1, "it is counted"
    )
    assert calls.answer(opened, "ListRuns", "", calls.bearer(guarded.token("admin"))).code == "OK"
    assert str(guarded.token("admin")) not in caplog.text


def test_one_caller_cannot_take_all_streams(guarded: Guarded, opened: grpc.Channel, run_id: str) -> None:
    streams = [select(guarded, opened, guarded.token("scorer"), run_id) for _ in range(2)]
    silent = Stream(opened, "Score", guarded.token("scorer"))
    bearer = calls.bearer(guarded.token("scorer"))
    wait_until(
        lambda: calls.answer(opened, "Score", run_id, bearer).code == "RESOURCE_EXHAUSTED", "the limit is reached"
    )
    answer = calls.answer(opened, "Select", run_id, bearer)
    assert (answer.code, answer.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert "scorer has 3 streams open" in answer.details
    select(guarded, opened, guarded.token("owner"), run_id).cancel()
    for stream in (*streams, silent):
        stream.cancel()
    wait_until(lambda: calls.answer(opened, "Select", run_id, bearer).code == "OK", "the streams are given back")


def test_a_stream_beyond_the_limit_of_its_caller_waits_for_a_place(
    guarded: Guarded, opened: grpc.Channel, run_id: str
) -> None:
    streams = [select(guarded, opened, guarded.token("scorer"), run_id) for _ in range(3)]
    with SelectionClient(guarded.target, token=guarded.token("scorer"), timeout_s=20.0) as client:
        future = client.get_run(run_id).submit(digits.candidates(3), 4, step=3)
        with pytest.raises(TimeoutError):
            future.result(0.5)
        streams[0].cancel()
        assert len(future.result(20.0).indices) == 4
    for stream in streams[1:]:
        stream.cancel()


def test_one_caller_cannot_take_all_runs_however_many_it_asks_for_at_once(guarded: Guarded, run_id: str) -> None:
    with SelectionClient(guarded.target, token=guarded.token("owner")) as client:
        assert client.create_run(digits.spec("team-b")).run_id == "team-b"
        with pytest.raises(OverloadedError, match=r"owner has 2 runs, as many as limits\.max_runs_per_identity allows"):
            client.create_run(digits.spec("team-c"))
        assert client.create_run(digits.spec("team-b")).run_id == "team-b"
        client.delete_run("team-b")
    method = METHODS["CreateRun"]
    with calls.channel(guarded.target) as opened:
        stub = opened.unary_unary(method.path, method.request.SerializeToString, method.response.FromString)
        futures = [
            stub.future(
                calls.REQUESTS["CreateRun"](f"team-many-{number}")[0],
                timeout=calls.TIMEOUT_S,
                metadata=calls.bearer(guarded.token("owner")),
            )
            for number in range(20)
        ]
        codes = [future.code().name for future in futures]
    assert (codes.count("OK"), codes.count("RESOURCE_EXHAUSTED")) == (1, 19)
