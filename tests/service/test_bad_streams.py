"""Calls that break the order, the credit or the encoding, and clients that vanish."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from preceptor import Run
from preceptor.v1 import selection_pb2
from tests.service import digits
from tests.service.architectures import Gate
from tests.service.conftest import MAX_CHUNK_BYTES, MAX_SUPER_BATCH_BYTES, WINDOW_BYTES, Control, Metrics, wait_until
from tests.service.raw import METHODS, RawChannel, chunk, header, select_open, super_batch


@pytest.fixture(autouse=True)
def alive(control: Control) -> Iterator[None]:
    yield
    control.check()


BODY: bytes = super_batch(digits.candidates(0, rows=8))[1].chunk.data


def _opened() -> selection_pb2.SelectRequest:
    return select_open("control")


_BROKEN: dict[str, tuple[list[Any], str]] = {
    "nothing opened": ([header(BODY)], "the stream does not start with SelectOpen; send it first"),
    "a chunk first": ([chunk(BODY)], "the stream does not start with SelectOpen; send it first"),
    "an empty message first": ([selection_pb2.SelectRequest()], "does not start with SelectOpen"),
    "opened twice": ([_opened(), _opened()], "the stream was opened twice; send SelectOpen once"),
    "opened inside a super-batch": ([_opened(), header(BODY), _opened()], "the stream was opened twice"),
    "a chunk without a header": ([_opened(), chunk(BODY)], "a chunk came without a super-batch; announce it"),
    "a header inside a super-batch": (
        [_opened(), header(BODY), chunk(BODY[:9]), header(BODY)],
        "a super-batch was announced inside another one; send all chunks of the first",
    ),
    "an empty message": ([_opened(), selection_pb2.SelectRequest()], "an empty SelectRequest; send a SuperBatchHeader"),
    "an empty chunk": ([_opened(), header(BODY), chunk(b"")], "the chunk at offset 0 is empty; send at least one byte"),
    "a gap": (
        [_opened(), header(BODY), chunk(BODY[:9]), chunk(BODY[10:], 10)],
        "a chunk has offset 10, 9 was next; send chunks in order",
    ),
    "an overlap": (
        [_opened(), header(BODY), chunk(BODY[:9]), chunk(BODY[8:], 8)],
        "a chunk has offset 8, 9 was next; send chunks in order",
    ),
    "a negative offset": ([_opened(), header(BODY), chunk(BODY, -1)], "a chunk has offset -1, 0 was next"),
    "beyond the announced end": (
        [_opened(), header(BODY), chunk(BODY + b"!")],
        f"the chunk at offset 0 ends at {len(BODY) + 1}, {len(BODY)} bytes were announced",
    ),
    "a negative size": ([_opened(), header(BODY, body_bytes=-1)], "body_bytes is -1; it cannot be negative"),
    "a chunk above the limit": (
        [
            _opened(),
            header(BODY, body_bytes=MAX_SUPER_BATCH_BYTES),
            chunk(b"x" * (MAX_CHUNK_BYTES + 1)),
        ],
        f"the chunk at offset 0 has {MAX_CHUNK_BYTES + 1} bytes, the limit is {MAX_CHUNK_BYTES}",
    ),
}


@pytest.mark.parametrize(("messages", "text"), _BROKEN.values(), ids=_BROKEN.keys())
def test_a_stream_that_breaks_the_order_ends(raw: RawChannel, control: Control, messages: list[Any], text: str) -> None:
    status = raw.call("Select", *messages).status()
    assert (status.code, status.reason) == ("INVALID_ARGUMENT", "MESSAGE_INVALID")
    assert text in status.details


def test_a_stream_that_ends_inside_a_super_batch_is_an_error(raw: RawChannel, control: Control) -> None:
    call = raw.call("Select", _opened(), header(BODY), chunk(BODY[:9]))
    call.half_close()
    status = call.status()
    assert (status.code, status.reason) == ("INVALID_ARGUMENT", "MESSAGE_INVALID")
    assert "the stream ended too early; send every message that the contract asks for" in status.details


def test_a_stream_that_asks_nothing_ends_well(raw: RawChannel, control: Control) -> None:
    call = raw.call("Select", _opened())
    assert call.receive().opened == selection_pb2.SelectOpened(
        window_bytes=WINDOW_BYTES, max_super_batch_bytes=MAX_SUPER_BATCH_BYTES, max_chunk_bytes=MAX_CHUNK_BYTES
    )
    call.half_close()
    assert call.status().code == "OK"


def test_a_super_batch_above_the_limit_of_bytes_ends_the_stream(raw: RawChannel, control: Control) -> None:
    for announced in (MAX_SUPER_BATCH_BYTES + 1, 2**63 - 1):
        status = raw.call("Select", _opened(), header(BODY, body_bytes=announced)).status()
        assert (status.code, status.reason) == ("RESOURCE_EXHAUSTED", "TOO_LARGE")
        assert f"a super-batch has {announced} bytes, the limit is {MAX_SUPER_BATCH_BYTES}" in status.details


def test_sending_beyond_the_credit_ends_the_stream(raw: RawChannel, gated_run: Run, gate: Gate) -> None:
    gate.close()
    call = raw.call("Select", select_open(gated_run.run_id))
    body = bytes(MAX_SUPER_BATCH_BYTES)
    first, last = super_batch(digits.gated_candidates(0))
    call.send(first, last)  # held at the gate, so its bytes stay unanswered
    for step in range(2, 2 + WINDOW_BYTES // len(body)):
        call.send(header(body, step=step), *_chunks(body))
    status = call.status()
    assert (status.code, status.reason) == ("INVALID_ARGUMENT", "MESSAGE_INVALID")
    assert f"bytes are unanswered, the window is {WINDOW_BYTES}; wait for credit" in status.details


def _chunks(body: bytes) -> list[selection_pb2.SelectRequest]:
    return [chunk(body[start : start + MAX_CHUNK_BYTES], start) for start in range(0, len(body), MAX_CHUNK_BYTES)]


def test_the_whole_window_may_be_used_and_comes_back(raw: RawChannel, gated_run: Run, gate: Gate) -> None:
    call = raw.call("Select", select_open(gated_run.run_id))
    body = bytes(MAX_SUPER_BATCH_BYTES)
    for turn in range(3):
        gate.close()
        for step in range(WINDOW_BYTES // len(body)):
            call.send(header(body, step=10 * turn + step, row_count=1), *_chunks(body))
        gate.open()
        given_back = 0
        while given_back < WINDOW_BYTES:
            response = call.receive()
            given_back += response.credit.bytes
        assert given_back == WINDOW_BYTES
    call.half_close()
    assert call.status().code == "OK"


_GARBAGE: dict[str, bytes] = {
    "noise": random.Random(0).randbytes(300),
    "all ones": b"\xff" * 64,
    "cut off": b"\x0a\x7f\x01",
    "bad text": b"\x0a\x02\xff\xfe",
    "a group without end": b"\x0b",
}


@pytest.mark.parametrize("name", [name for name in METHODS if name != "ListRuns"])
@pytest.mark.parametrize("data", _GARBAGE.values(), ids=_GARBAGE.keys())
def test_bytes_that_are_no_message_are_an_invalid_argument(
    raw: RawChannel, control: Control, name: str, data: bytes
) -> None:
    status = raw.call(name, data).status()
    assert status.code == "INVALID_ARGUMENT"
    assert status.reason in ("MESSAGE_INVALID", "RUN_INVALID")


@pytest.mark.parametrize("name", METHODS)
def test_garbage_is_named_as_such(raw: RawChannel, control: Control, name: str) -> None:
    status = raw.call(name, b"\xff" * 64).status()
    assert (status.code, status.reason) == ("INVALID_ARGUMENT", "MESSAGE_INVALID")
    assert f"the bytes are not a {METHODS[name].request.DESCRIPTOR.full_name}" in status.details


@pytest.mark.parametrize("at", [1, 2, 3])
def test_garbage_in_the_middle_of_a_stream_ends_it(raw: RawChannel, control: Control, at: int) -> None:
    messages: list[Any] = [_opened(), header(BODY), chunk(BODY[:9])]
    status = raw.call("Select", *messages[:at], b"\xff" * 64).status()
    assert (status.code, status.reason) == ("INVALID_ARGUMENT", "MESSAGE_INVALID")
    assert "the bytes are not a preceptor.v1.SelectRequest" in status.details


def test_deeply_nested_bytes_are_an_invalid_argument(raw: RawChannel) -> None:
    status = raw.call("CreateRun", b"\x0b" * 5000).status()
    assert status.code == "INVALID_ARGUMENT"


def test_a_message_above_the_limit_is_refused(raw: RawChannel, control: Control) -> None:
    status = raw.call("Select", _opened(), header(BODY), chunk(b"x" * (2 * 1024 * 1024))).status()
    assert status.code == "RESOURCE_EXHAUSTED"
    assert "larger than max" in status.details


def test_an_unknown_method_is_unimplemented(raw: RawChannel) -> None:
    call = raw.grpc.unary_unary("/preceptor.v1.SelectionService/Guess").future(b"", timeout=20)
    assert call.code().name == "UNIMPLEMENTED"


_SCORE_BROKEN: dict[str, tuple[list[selection_pb2.ScoreRequest], str]] = {
    "a chunk first": (
        [selection_pb2.ScoreRequest(chunk=selection_pb2.Chunk(data=b"1"))],
        "the stream does not start with ScoreHeader; send it first",
    ),
    "two headers": (
        [selection_pb2.ScoreRequest(header=selection_pb2.ScoreHeader(run_id="control", row_count=1, body_bytes=5))] * 2,
        "something other than a Chunk came inside the body",
    ),
    "a gap": (
        [
            selection_pb2.ScoreRequest(header=selection_pb2.ScoreHeader(run_id="control", row_count=1, body_bytes=5)),
            selection_pb2.ScoreRequest(chunk=selection_pb2.Chunk(offset=1, data=b"1")),
        ],
        "a chunk has offset 1, 0 was next; send chunks in order",
    ),
    "too few bytes": (
        [
            selection_pb2.ScoreRequest(header=selection_pb2.ScoreHeader(run_id="control", row_count=1, body_bytes=5)),
            selection_pb2.ScoreRequest(chunk=selection_pb2.Chunk(data=b"1")),
        ],
        "the stream ended too early; send every message that the contract asks for",
    ),
    "nothing": ([], "the stream ended too early"),
}


@pytest.mark.parametrize(("messages", "text"), _SCORE_BROKEN.values(), ids=_SCORE_BROKEN.keys())
def test_a_score_call_that_breaks_the_order_is_refused(
    raw: RawChannel, control: Control, messages: list[Any], text: str
) -> None:
    call = raw.call("Score", *messages)
    call.half_close()
    status = call.status()
    assert (status.code, status.reason) == ("INVALID_ARGUMENT", "MESSAGE_INVALID")
    assert text in status.details


def test_a_client_that_vanishes_leaves_nothing_in_flight(
    target: str, metrics: Metrics, gated_run: Run, gate: Gate
) -> None:
    open_streams, in_flight = "preceptor_select_streams", "preceptor_in_flight_bytes"
    before = metrics.value(open_streams)
    gate.close()
    with RawChannel(target) as vanishing:
        call = vanishing.call("Select", select_open(gated_run.run_id))
        for step in range(3):
            call.send(*super_batch(digits.gated_candidates(step), step=step))
        call.send(header(BODY, step=9), chunk(BODY[:100]))
        sent = sum(len(super_batch(digits.gated_candidates(step))[1].chunk.data) for step in range(3)) + 100
        wait_until(lambda: metrics.value(in_flight) == sent, "all bytes arrived")
        assert metrics.value(open_streams) == before + 1
    wait_until(lambda: metrics.value(open_streams) == before, "the stream was given up")
    wait_until(lambda: metrics.value(in_flight) == 0, "its bytes were given up")
