"""The Select stream: order, window, backpressure, deadlines. What happens when it breaks: `test_stream_resume.py`."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_futures
from functools import partial

import numpy as np
import pyarrow as pa
import pytest

from preceptor import Run, RunSpec, Selection, SelectionClient
from preceptor.batches import encode
from preceptor.errors import (
    ClosedError,
    DeadlineExceededError,
    InternalError,
    InvalidSuperBatchError,
    TooLargeError,
    UnavailableError,
)
from preceptor.v1 import selection_pb2
from tests.client.conftest import candidates
from tests.client.fake_service import WAIT_S, FakeService, Received, Stream

BODY_BYTES = len(encode(candidates()).body)
SHORT_S = 0.15


def hold(stream: Stream, received: Received) -> None:
    """Answers nothing."""


def has_received(service: FakeService, count: int) -> bool:
    return len(service.received) >= count


def has_unanswered(stream: Stream, byte_count: int) -> bool:
    return stream.unanswered_bytes >= byte_count


@pytest.fixture
def narrow() -> Iterator[FakeService]:
    """A service that holds its answers and whose window takes one super-batch and a half, in many chunks."""
    with FakeService(
        window_bytes=BODY_BYTES * 3 // 2, max_super_batch_bytes=BODY_BYTES, max_chunk_bytes=100
    ) as service:
        service.on_super_batch = hold
        yield service


@pytest.fixture
def narrow_run(narrow: FakeService) -> Iterator[Run]:
    with SelectionClient(narrow.target, timeout_s=WAIT_S) as client:
        yield client.create_run(RunSpec("digits", "small_cnn"))


def test_a_selection_is_what_the_service_answered(service: FakeService, run: Run) -> None:
    service.on_super_batch = lambda stream, received: stream.answer(received, learner_version=3)

    selection = run.select(candidates(rows=8), 3, step=5, rank=1)

    assert (selection.step, selection.rank, selection.learner_version, selection.is_fallback) == (5, 1, 3, False)
    assert (selection.learner_step, selection.staleness_steps) == (None, None)
    assert selection.indices.dtype == np.int64
    assert selection.indices.tolist() == [0, 1, 2]
    assert selection.scores.dtype == np.float32
    assert selection.scores.tolist() == list(range(8))
    selection.indices[0] = 7  # the arrays are the trainer's own


def test_the_header_describes_the_body_and_the_body_is_the_batch(service: FakeService, run: Run) -> None:
    batch = candidates(rows=1000)

    run.select(batch, np.int64(3), step=np.int64(5), rank=2, example_id=np.arange(1000))  # type: ignore[arg-type]

    [received] = service.received
    encoded = encode(batch, np.arange(1000))
    header = received.header
    assert received.body == bytes(encoded.body)
    assert (header.step, header.rank, header.sub_batch_size, header.row_count) == (5, 2, 3, 1000)
    assert (header.body_bytes, header.digest) == (len(encoded.body), encoded.digest)
    assert pa.ipc.open_stream(received.body).read_all().column_names == ["image", "label", "example_id"]


def test_chunks_come_in_order_and_as_large_as_the_gateway_takes(narrow: FakeService, narrow_run: Run) -> None:
    narrow.on_super_batch = lambda stream, received: stream.answer(received)
    for step in range(5):
        narrow_run.select(candidates(first=step), 2, step)
    for received in narrow.received:
        *full, last = received.chunk_sizes
        assert full
        assert set(full) == {100}
        assert 0 < last <= 100
    assert narrow.streams[0].broken_order == []


def test_answers_out_of_order_reach_the_right_futures(service: FakeService, run: Run) -> None:
    service.on_super_batch = hold
    futures = [run.submit(candidates(first=step), step + 1, step, rank) for step in range(4) for rank in range(2)]
    service.wait_for("all arrived", lambda: len(service.received) == 8)

    for received in reversed(service.received):
        service.streams[0].answer(received)

    for future, key in zip(futures, [(step, rank) for step in range(4) for rank in range(2)], strict=True):
        selection = future.result(WAIT_S)
        assert (selection.step, selection.rank) == key
        assert selection.indices.tolist() == list(range(key[0] + 1))


def test_threads_and_handles_of_a_run_share_one_stream(service: FakeService, client: SelectionClient, run: Run) -> None:
    handles = [run, client.get_run("digits")]
    selections: list[Selection] = []

    def train(rank: int) -> None:
        selections.extend(handles[rank % 2].select(candidates(first=rank), 2, step, rank) for step in range(10))

    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)

    assert {(selection.step, selection.rank) for selection in selections} == {
        (s, r) for s in range(10) for r in range(4)
    }
    assert len(service.streams) == 1
    assert service.streams[0].broken_order == []


def test_nothing_is_opened_before_the_first_submission(service: FakeService, run: Run) -> None:
    run.status()
    assert service.streams == []
    assert service.calls["Select"] == 0


def test_unanswered_bytes_never_exceed_the_window(narrow: FakeService, narrow_run: Run) -> None:
    futures: list[Future[Selection]] = []

    def offer() -> None:
        futures.extend(narrow_run.submit(candidates(first=step), 2, step) for step in range(12))

    trainer = threading.Thread(target=offer)
    trainer.start()
    for count in range(1, 13):
        narrow.wait_for(f"super-batch {count} arrived", partial(has_received, narrow, count))
        stream = narrow.streams[0]
        if count < 12:
            # A body and as many chunks of the next one as fit; then the client has to stop.
            fill = BODY_BYTES + (narrow.window_bytes - BODY_BYTES) // 100 * 100
            narrow.wait_for("the window is full", partial(has_unanswered, stream, fill))
            # A round trip, in which a client that minds no window would go on sending.
            narrow_run.status()
        assert len(narrow.received) == count
        stream.answer(narrow.received[-1])
    trainer.join(WAIT_S)

    assert [future.result(WAIT_S).step for future in futures] == list(range(12))
    assert narrow.window_bytes - 100 < stream.max_unanswered_bytes <= narrow.window_bytes


def test_a_super_batch_begins_as_soon_as_credit_covers_its_first_chunk(narrow: FakeService, narrow_run: Run) -> None:
    for step in range(2):
        narrow_run.submit(candidates(first=step), 2, step)
    narrow.wait_for("the second was announced", lambda: narrow.announced == [(0, 0), (1, 0)])
    assert [received.key for received in narrow.received] == [(0, 0)]


def test_submit_blocks_while_more_than_the_window_waits_to_be_sent(narrow: FakeService, narrow_run: Run) -> None:
    futures = [narrow_run.submit(candidates(first=step), 2, step) for step in range(2)]
    narrow.wait_for("the second was announced", lambda: len(narrow.announced) == 2)
    futures.append(narrow_run.submit(candidates(first=2), 2, 2))

    with pytest.raises(DeadlineExceededError, match="step 3, rank 0"):
        narrow_run.submit(candidates(first=3), 2, 3, timeout_s=SHORT_S)

    narrow.on_super_batch = lambda stream, received: stream.answer(received)
    narrow.streams[0].answer(narrow.received[0])
    futures.append(narrow_run.submit(candidates(first=3), 2, 3))
    assert [future.result(WAIT_S).step for future in futures] == [0, 1, 2, 3]


def test_a_super_batch_over_the_limit_fails_alone(narrow: FakeService, narrow_run: Run) -> None:
    narrow.on_super_batch = lambda stream, received: stream.answer(received)
    before = narrow_run.submit(candidates(), 2, 0)
    large = narrow_run.submit(candidates(rows=1000), 2, 1)
    after = narrow_run.submit(candidates(first=1), 2, 2)

    with pytest.raises(TooLargeError, match=rf"step 1, rank 0 is \d+ bytes, the gateway takes {BODY_BYTES}"):
        large.result(WAIT_S)
    assert [before.result(WAIT_S).step, after.result(WAIT_S).step] == [0, 2]
    assert len(narrow.streams) == 1


def test_the_same_step_and_rank_cannot_be_pending_twice(service: FakeService, run: Run) -> None:
    service.on_super_batch = hold
    run.submit(candidates(), 2, 0)
    with pytest.raises(ValueError, match="step 0, rank 0 of run 'digits' is pending"):
        run.submit(candidates(), 2, 0)
    run.submit(candidates(), 2, 0, rank=1)
    service.wait_for("both ranks arrived", lambda: len(service.received) == 2)


def test_a_failure_fails_its_super_batch_and_the_stream_lives_on(service: FakeService, run: Run) -> None:
    service.on_super_batch = lambda stream, received: stream.fail(
        received, "INVALID_ARGUMENT", "SUPER_BATCH_INVALID", "sub_batch_size is 9, the super-batch has 8 rows"
    )
    with pytest.raises(InvalidSuperBatchError, match="sub_batch_size is 9, the super-batch has 8 rows"):
        run.select(candidates(), 9, 0)
    service.on_super_batch = lambda stream, received: stream.answer(received)
    assert run.select(candidates(), 8, 0).indices.size == 8
    assert len(service.streams) == 1


def test_no_answer_in_time_is_a_deadline_error_and_the_stream_stays_open(service: FakeService, run: Run) -> None:
    run.select(candidates(), 2, 0)
    service.on_super_batch = hold
    with pytest.raises(DeadlineExceededError, match=r"no selection for step 1, rank 0 .* within 0\.15 s"):
        run.select(candidates(first=1), 2, 1, timeout_s=SHORT_S)
    service.on_super_batch = lambda stream, received: stream.answer(received)
    assert run.select(candidates(first=2), 2, 2).step == 2
    assert len(service.streams) == 1


def test_a_late_answer_is_dropped_and_its_credit_used(narrow: FakeService, narrow_run: Run) -> None:
    given_up = narrow_run.submit(candidates(), 2, 0)
    narrow.wait_for("it arrived", lambda: len(narrow.received) == 1)
    assert given_up.cancel()

    stream = narrow.streams[0]
    narrow.on_super_batch = lambda stream, received: stream.answer(received)
    stream.answer(narrow.received[0])
    selections = [narrow_run.select(candidates(first=step), 2, step) for step in range(1, 4)]

    assert [selection.step for selection in selections] == [1, 2, 3]
    assert narrow.streams == [stream]


def test_repeating_a_step_that_was_given_up_takes_the_answer_that_is_under_way(service: FakeService, run: Run) -> None:
    service.on_super_batch = hold
    given_up = run.submit(candidates(), 2, 0)
    service.wait_for("it arrived", lambda: len(service.received) == 1)
    assert given_up.cancel()

    repeated = run.submit(candidates(), 2, 0)
    service.streams[0].answer(service.received[0])

    assert repeated.result(WAIT_S).indices.tolist() == [0, 1]
    assert len(service.received) == 1


def test_repeating_a_step_otherwise_never_takes_the_answer_to_the_first_question(
    service: FakeService, run: Run
) -> None:
    service.on_super_batch = hold
    given_up = run.submit(candidates(), 2, 0)
    service.wait_for("it arrived", lambda: len(service.received) == 1)
    assert given_up.cancel()
    service.on_super_batch = lambda stream, received: stream.answer(received)

    repeated = run.submit(candidates(), 5, 0)
    service.streams[0].answer(service.received[0])

    assert repeated.result(WAIT_S).indices.size == 5
    assert len(service.streams) == 2


def test_a_step_whose_late_answer_came_can_be_asked_again(service: FakeService, run: Run) -> None:
    service.on_super_batch = hold
    given_up = run.submit(candidates(), 2, 0)
    service.wait_for("it arrived", lambda: len(service.received) == 1)
    assert given_up.cancel()
    service.streams[0].answer(service.received[0])
    service.on_super_batch = lambda stream, received: stream.answer(received)
    run.select(candidates(first=1), 2, 1)  # answered behind the late answer, which therefore came

    assert run.select(candidates(), 5, 0).indices.size == 5
    assert len(service.streams) == 1


def test_ctrl_c_ends_select_and_the_step_can_be_repeated(service: FakeService, run: Run) -> None:
    def interrupt(stream: Stream, received: Received) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    service.on_super_batch = interrupt
    with pytest.raises(KeyboardInterrupt):
        run.select(candidates(), 2, 0)
    repeated = run.submit(candidates(), 2, 0)
    service.streams[0].answer(service.received[0])
    assert repeated.result(WAIT_S).step == 0


def test_a_done_callback_may_submit_the_next_step(service: FakeService, run: Run) -> None:
    last: Future[Selection] = Future()

    def go_on(future: Future[Selection]) -> None:
        step = future.result(0).step
        if step == 5:
            last.set_result(future.result(0))
        else:
            run.submit(candidates(first=step), 2, step + 1).add_done_callback(go_on)

    run.submit(candidates(), 2, 0).add_done_callback(go_on)
    assert last.result(WAIT_S).step == 5


@pytest.mark.parametrize(
    "wait",
    [lambda run: run.submit(candidates(first=3), 2, 3), lambda run: run.select(candidates(first=3), 2, 3)],
    ids=["submit with a full window", "select"],
)
def test_a_done_callback_that_would_wait_for_its_own_thread_is_told_so(
    narrow: FakeService, narrow_run: Run, wait: Callable[[Run], object]
) -> None:
    raised: Future[BaseException | None] = Future()

    def go_on(_: object) -> None:
        try:
            wait(narrow_run)
        except RuntimeError as error:
            raised.set_result(error)

    futures = [narrow_run.submit(candidates(), 2, 0)]
    futures[0].add_done_callback(go_on)
    narrow.wait_for("the first arrived", lambda: len(narrow.received) == 1)
    futures += [narrow_run.submit(candidates(first=step), 2, step) for step in (1, 2)]
    narrow.on_super_batch = lambda stream, received: stream.answer(received)
    narrow.streams[0].answer(narrow.received[0], with_credit=False)

    assert "would wait for the thread that it is called in" in str(raised.result(WAIT_S / 2))
    narrow.streams[0].give_credit(BODY_BYTES)
    assert [future.result(WAIT_S).step for future in futures] == [0, 1, 2]


@pytest.mark.parametrize(("step", "rank"), [(-1, 0), (0, -1)])
def test_a_step_or_rank_below_zero_is_refused(run: Run, step: int, rank: int) -> None:
    with pytest.raises(ValueError, match=r"(step|rank) is -1; it must be 0 or above"):
        run.submit(candidates(), 2, step, rank)


def test_closing_fails_what_is_pending_and_ends_the_threads(service: FakeService) -> None:
    service.on_super_batch = hold
    client = SelectionClient(service.target)
    run = client.create_run(RunSpec("closing", "small_cnn"))
    futures = [run.submit(candidates(first=step), 2, step) for step in range(3)]
    service.wait_for("all arrived", lambda: len(service.received) == 3)

    client.close()

    assert all(isinstance(future.exception(0), ClosedError) for future in futures)
    assert [thread.name for thread in threading.enumerate() if thread.name.endswith("-closing")] == []


def test_deleting_a_run_fails_what_is_pending_and_the_name_can_be_used_again(
    service: FakeService, client: SelectionClient, run: Run
) -> None:
    service.on_super_batch = hold
    pending = run.submit(candidates(), 2, 0)
    client.delete_run("digits")
    assert isinstance(pending.exception(WAIT_S), ClosedError)
    service.on_super_batch = lambda stream, received: stream.answer(received)
    again = client.create_run(RunSpec("digits", "small_cnn", seed=1))
    assert again.select(candidates(), 2, 0).step == 0


def test_a_gateway_that_never_opens_the_stream_is_unavailable(service: FakeService, run: Run) -> None:
    service.opened = lambda: None
    with pytest.raises(UnavailableError, match=f"no gateway at {service.target} .*it did not open the stream"):
        run.select(candidates(), 2, 0, timeout_s=SHORT_S)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (selection_pb2.SelectResponse(credit=selection_pb2.Credit(bytes=1)), "credit came before opened"),
        (selection_pb2.SelectResponse(), "None came before opened"),
        (selection_pb2.SelectResponse(opened=selection_pb2.SelectOpened(window_bytes=1)), "below 1"),
    ],
)
def test_a_gateway_that_breaks_the_order_is_an_internal_error(
    service: FakeService, run: Run, first: selection_pb2.SelectResponse, message: str
) -> None:
    service.opened = lambda: first
    with pytest.raises(InternalError, match=message):
        run.select(candidates(), 2, 0)


def test_an_answer_that_cannot_be_read_fails_its_super_batch_alone(service: FakeService, run: Run) -> None:
    broken = selection_pb2.SelectResponse(selection=selection_pb2.Selection(step=0, indices=b"123"))
    service.on_super_batch = lambda stream, received: stream.outbox.put(broken)
    with pytest.raises(InternalError, match="cannot be read"):
        run.select(candidates(), 2, 0)
    service.on_super_batch = lambda stream, received: stream.answer(received)
    assert run.select(candidates(), 2, 1).step == 1
    assert len(service.streams) == 1


def test_bodies_are_freed_when_they_are_answered_without_the_garbage_collector(run: Run) -> None:
    batch = {"image": np.zeros((500, 1000), np.uint8)}
    run.select(batch, 2, 0)
    gc.collect()
    gc.disable()
    try:
        before = pa.total_allocated_bytes()
        wait_for_futures([run.submit(batch, 2, step) for step in range(1, 21)], WAIT_S)
        run.select({"image": np.zeros(1, np.uint8)}, 1, 21)
        assert pa.total_allocated_bytes() < before + 100_000
    finally:
        gc.enable()
