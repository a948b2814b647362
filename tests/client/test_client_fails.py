"""Whatever goes wrong inside the client: no future is left unsettled, and the next submission works."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from preceptor import Run, RunSpec, SelectionClient
from preceptor.channel import Connection
from preceptor.errors import InternalError, UnavailableError
from preceptor.fallback import Fallback
from tests.client.conftest import candidates
from tests.client.fake_service import WAIT_S, FakeService, Received, Stream


def hold(stream: Stream, received: Received) -> None:
    """Answers nothing."""


def fail(*_: Any, **__: Any) -> Any:
    raise OverflowError("a bug")


def cannot_start_a(name: str) -> Callable[[threading.Thread], None]:
    start = threading.Thread.start

    def started(thread: threading.Thread) -> None:
        if thread.name.startswith(f"preceptor-{name}"):
            raise RuntimeError("can't start new thread")
        start(thread)

    return started


def works(service: FakeService, run: Run) -> bool:
    service.on_super_batch = lambda stream, received: stream.answer(received)
    return run.select(candidates(first=9), 2, 9).step == 9


def test_a_stream_that_cannot_be_opened_fails_what_is_pending(
    service: FakeService, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Connection, "stream", fail)
        with pytest.raises(
            InternalError, match="the client itself failed with OverflowError at the stream of run 'digits'"
        ):
            run.select(candidates(), 2, 0)
    assert "a bug" in caplog.text
    assert works(service, run)


def test_a_draw_that_fails_fails_what_is_pending(
    service: FakeService, client: SelectionClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preceptor.fallback._WAY_S", 0.1)
    run = client.create_run(RunSpec("digits", "small_cnn", deadline_s=0.1, on_deadline="uniform"))
    service.on_super_batch = hold
    with monkeypatch.context() as broken:
        broken.setattr(Fallback, "drawn", fail)
        futures = [run.submit(candidates(first=step), 2, step) for step in range(2)]
        assert [type(future.exception(WAIT_S)) for future in futures] == [InternalError] * 2
    monkeypatch.setattr("preceptor.fallback._WAY_S", WAIT_S)
    assert works(service, run)


def test_an_answer_that_breaks_the_reader_fails_what_is_pending(
    service: FakeService, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.on_super_batch = hold
    futures = [run.submit(candidates(first=step), 2, step) for step in range(3)]
    service.wait_for("all arrived", lambda: len(service.received) == 3)
    with monkeypatch.context() as broken:
        broken.setattr("preceptor.stream._decoded", fail)
        service.streams[0].answer(service.received[0])
        assert [type(future.exception(WAIT_S)) for future in futures] == [InternalError] * 3
    assert works(service, run)


def test_without_a_thread_to_read_with_what_is_pending_fails(
    service: FakeService, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(threading.Thread, "start", cannot_start_a("reader"))
        with pytest.raises(InternalError, match="RuntimeError"):
            run.select(candidates(), 2, 0)
    assert works(service, run)


def test_without_a_thread_to_keep_the_stream_nothing_is_submitted(
    service: FakeService, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(threading.Thread, "start", cannot_start_a("keeper"))
        with pytest.raises(RuntimeError, match="can't start new thread"):
            run.submit(candidates(first=9), 2, 9)
    assert works(service, run)


def test_a_callback_that_ends_its_thread_keeps_nobody_else_from_an_answer(service: FakeService, run: Run) -> None:
    def leave(_: object) -> None:
        raise SystemExit

    service.on_super_batch = hold
    futures = [run.submit(candidates(first=step), 2, step) for step in range(2)]
    futures[0].add_done_callback(leave)
    service.wait_for("all arrived", lambda: len(service.received) == 2)
    for received in service.received:
        service.streams[0].answer(received)
    assert futures[1].result(WAIT_S).step == 1
    assert works(service, run)


@pytest.mark.parametrize("token", ["sesame\n", "s\u00e9same", "\udcff", "a\tb"], ids=ascii)
def test_a_token_that_no_header_carries_is_refused_and_not_printed(service: FakeService, token: str) -> None:
    with pytest.raises(ValueError, match="beyond printable ASCII") as raised:
        SelectionClient(service.target, token=token)
    assert token not in str(raised.value)


def test_a_function_that_returns_such_a_token_is_asked_again_until_time_is_up(service: FakeService) -> None:
    tokens = ["sesame", "sesame\n", "\udcff", "sesame"]
    with SelectionClient(service.target, token=lambda: tokens.pop(0), timeout_s=WAIT_S) as client:
        run = client.create_run(RunSpec("digits", "small_cnn"))
        assert run.select(candidates(), 2, 0).step == 0
        tokens += ["\udcff"] * 100
        service.streams[0].abort("UNAVAILABLE")
        with pytest.raises(UnavailableError, match="the token that the function returned has characters"):
            run.select(candidates(first=1), 2, 1, timeout_s=0.5)
