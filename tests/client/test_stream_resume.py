"""A Select stream that breaks: what was answered is not asked again, what was not is sent again, in order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from preceptor import Run, RunSpec, SelectionClient
from preceptor.batches import encode
from preceptor.channel import Connection
from preceptor.errors import (
    FailedPreconditionError,
    InvalidMessageError,
    OverloadedError,
    PreceptorError,
    RunNotFoundError,
    UnauthenticatedError,
    UnavailableError,
)
from tests.client.conftest import candidates
from tests.client.fake_service import WAIT_S, Abort, FakeService, Received, Stream

BODY_BYTES = len(encode(candidates()).body)

BREAKS: dict[str, Callable[[Stream], None]] = {
    "the gateway drains": lambda stream: stream.abort("UNAVAILABLE", "GATEWAY_DRAINING"),
    "the connection is lost": lambda stream: stream.abort("UNAVAILABLE"),
    "the peer resets the stream": lambda stream: stream.abort("INTERNAL"),
    "the peer cancels": lambda stream: stream.abort("CANCELLED"),
    "a proxy ends long streams": lambda stream: stream.abort("DEADLINE_EXCEEDED"),
    "the gateway ends without an error": lambda stream: stream.end(),
    "one super-batch meets a draining gateway": lambda stream: stream.fail(
        stream.received[-1], "UNAVAILABLE", "GATEWAY_DRAINING", "draining"
    ),
}


def hold(stream: Stream, received: Received) -> None:
    """Answers nothing."""


def answer(stream: Stream, received: Received) -> None:
    stream.answer(received)


def has_part_of_the_second(service: FakeService) -> bool:
    return bool(service.streams) and service.streams[0].unanswered_bytes > BODY_BYTES


def is_read(run: Run) -> bool:
    return any(thread.name == f"preceptor-reader-{run.run_id}" for thread in threading.enumerate())


@pytest.mark.parametrize("how", BREAKS)
def test_unanswered_super_batches_are_sent_again_in_order(service: FakeService, run: Run, how: str) -> None:
    service.on_super_batch = hold
    futures = [run.submit(candidates(first=step), 2, step) for step in range(5)]
    service.wait_for("all arrived", lambda: len(service.received) == 5)
    first = service.streams[0]
    first.answer(first.received[1])
    assert futures[1].result(WAIT_S).step == 1
    service.on_super_batch = answer

    BREAKS[how](first)

    assert [future.result(WAIT_S).step for future in futures] == [0, 1, 2, 3, 4]
    second = service.streams[1]
    assert [received.key for received in second.received] == [(0, 0), (2, 0), (3, 0), (4, 0)]
    sent_first = {received.key: (received.body, received.header.digest) for received in first.received}
    assert all(sent_first[again.key] == (again.body, again.header.digest) for again in second.received)
    assert second.broken_order == []


def test_a_break_in_the_middle_of_a_body_sends_it_again_from_its_beginning() -> None:
    with (
        FakeService(window_bytes=BODY_BYTES * 3 // 2, max_super_batch_bytes=BODY_BYTES, max_chunk_bytes=100) as service,
        SelectionClient(service.target, timeout_s=WAIT_S) as client,
    ):
        run = client.create_run(RunSpec("digits", "small_cnn"))
        service.on_super_batch = hold
        futures = [run.submit(candidates(first=step), 2, step) for step in range(2)]
        service.wait_for("part of the second", lambda: has_part_of_the_second(service))
        service.on_super_batch = answer

        service.streams[0].abort("UNAVAILABLE")

        assert [future.result(WAIT_S).step for future in futures] == [0, 1]
        assert [received.key for received in service.streams[0].received] == [(0, 0)]
        again = service.streams[1].received
        assert [received.body for received in again] == [
            bytes(encode(candidates(first=step)).body) for step in range(2)
        ]


def test_a_resumed_stream_names_the_highest_version_seen(service: FakeService, run: Run) -> None:
    versions = iter([4, 7, 6])
    service.on_super_batch = lambda stream, received: stream.answer(received, learner_version=next(versions))
    for step in range(3):
        run.select(candidates(first=step), 2, step)
    service.on_super_batch = answer
    service.streams[0].abort("UNAVAILABLE")
    service.wait_for("the first stream is gone", lambda: service.calls["Select"] == 1)

    run.select(candidates(first=3), 2, 3)
    service.streams[-1].abort("UNAVAILABLE")

    first, *others = [stream.open for stream in service.streams]
    assert first is not None
    assert not first.HasField("observed_learner_version")
    assert all(opened is not None and opened.observed_learner_version == 7 for opened in others)


def test_a_version_seen_by_score_is_named_when_the_stream_opens(service: FakeService, run: Run) -> None:
    service.learner_version = 9
    run.score(candidates())
    run.select(candidates(), 2, 0)
    [stream] = service.streams
    assert stream.open is not None
    assert (stream.open.run_id, stream.open.observed_learner_version) == ("digits", 9)


def test_a_gateway_that_is_replaced_on_its_port_is_found_again() -> None:
    first = FakeService()
    first.on_super_batch = hold
    with first, SelectionClient(first.target, timeout_s=WAIT_S) as client:
        run = client.create_run(RunSpec("digits", "small_cnn"))
        futures = [run.submit(candidates(first=step), 2, step) for step in range(3)]
        first.wait_for("all arrived", lambda: len(first.received) == 3)
        first.stop()
        with FakeService(port=first.port) as second:
            assert [future.result(WAIT_S).step for future in futures] == [0, 1, 2]
            assert [received.key for received in second.received] == [(0, 0), (1, 0), (2, 0)]


def test_a_gateway_that_refuses_at_first_is_tried_again(service: FakeService, run: Run) -> None:
    service.first_aborts["Select"] = [Abort("UNAVAILABLE")] * 3
    assert run.select(candidates(), 2, 0).step == 0
    assert service.calls["Select"] == 4


def test_a_gateway_that_is_silent_at_first_is_tried_again(
    service: FakeService, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preceptor.stream.OPEN_TIMEOUT_S", 0.05)
    opened, silent = service.opened, iter([None])
    service.opened = lambda: next(silent, opened())
    assert run.select(candidates(), 2, 0).step == 0
    assert len(service.streams) >= 2


def test_no_gateway_until_the_deadline_is_unavailable_with_the_last_reason(service: FakeService, run: Run) -> None:
    service.aborts["Select"] = Abort("UNAVAILABLE", "GATEWAY_DRAINING", "gateway 3 is draining")
    with pytest.raises(
        UnavailableError, match=r"no gateway at .* step 4, rank 1 .*'digits' within 0\.2 s; last: gateway 3 is draining"
    ):
        run.select(candidates(), 2, 4, rank=1, timeout_s=0.2)


def test_a_gateway_that_is_gone_is_waited_for_and_not_called_again_and_again(
    service: FakeService, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.select(candidates(), 2, 0)
    calls: list[str] = []
    stream = Connection.stream

    def counted(self: Connection, name: str, *arguments: Any, **named: Any) -> Any:
        calls.append(name)
        return stream(self, name, *arguments, **named)

    monkeypatch.setattr(Connection, "stream", counted)
    service.stop()
    with pytest.raises(UnavailableError, match=r"within 2 s; last: (?!.*did not open)"):
        run.select(candidates(first=1), 2, 1, timeout_s=2.0)
    assert 1 <= len(calls) <= 2


def test_each_super_batch_has_its_own_deadline_over_all_reconnects(service: FakeService, run: Run) -> None:
    service.aborts["Select"] = Abort("UNAVAILABLE")
    short = run.submit(candidates(), 2, 0, timeout_s=0.15)
    patient = run.submit(candidates(first=1), 2, 1)
    assert isinstance(short.exception(WAIT_S), UnavailableError)
    del service.aborts["Select"]
    assert patient.result(WAIT_S).step == 1
    assert [received.key for received in service.received] == [(1, 0)]


@pytest.mark.parametrize(
    ("abort", "expected"),
    [
        (Abort("NOT_FOUND", "RUN_NOT_FOUND", "no run 'digits'"), RunNotFoundError),
        (Abort("INVALID_ARGUMENT", "MESSAGE_INVALID", "credit exceeded"), InvalidMessageError),
        (Abort("UNAUTHENTICATED", "UNAUTHENTICATED", "token expired"), UnauthenticatedError),
        (Abort("RESOURCE_EXHAUSTED", "OVERLOADED", "256 streams are open"), OverloadedError),
        (Abort("FAILED_PRECONDITION", None, "not now"), FailedPreconditionError),
    ],
)
def test_a_refused_stream_fails_all_pending_and_the_next_submission_opens_another(
    service: FakeService, run: Run, abort: Abort, expected: type[PreceptorError]
) -> None:
    service.on_super_batch = hold
    futures = [run.submit(candidates(first=step), 2, step) for step in range(3)]
    service.wait_for("all arrived", lambda: len(service.received) == 3)
    service.on_super_batch = answer

    service.streams[0].abort(abort.code, abort.reason, abort.details)

    errors = [future.exception(WAIT_S) for future in futures]
    assert [type(error) for error in errors] == [expected] * 3
    assert all(abort.details in str(error) for error in errors)
    assert len({id(error) for error in errors}) == 3
    assert run.select(candidates(), 2, 0).step == 0
    assert len(service.streams) == 2


def test_a_stream_that_ends_while_idle_fails_nothing(service: FakeService, run: Run) -> None:
    for step, (code, reason) in enumerate([("UNAVAILABLE", "GATEWAY_DRAINING"), ("NOT_FOUND", "RUN_NOT_FOUND")]):
        run.select(candidates(first=step), 2, step)
        service.streams[-1].abort(code, reason)
        service.wait_for("the client has noticed", lambda: not is_read(run))
    assert run.select(candidates(first=9), 2, 9).step == 9
    assert len(service.streams) == 3


def test_a_body_that_another_gateway_finds_too_large_fails_there(service: FakeService, run: Run) -> None:
    service.on_super_batch = hold
    future = run.submit(candidates(), 2, 0)
    small = run.submit({"image": candidates(rows=1)["image"]}, 1, 1)
    service.wait_for("both arrived", lambda: len(service.received) == 2)
    service.on_super_batch = answer
    service.max_super_batch_bytes = BODY_BYTES - 1
    service.streams[0].abort("UNAVAILABLE")
    assert "the gateway takes" in str(future.exception(WAIT_S))
    assert small.result(WAIT_S).step == 1
