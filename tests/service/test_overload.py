"""More than a gateway can do: who is refused, at once, and who is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from preceptor import Run, SelectionClient
from preceptor_service.app import RunningService
from tests.service import digits
from tests.service.conftest import Metrics, metrics_of, target_of, wait_until
from tests.service.raw import RawCall, RawChannel, chunk, header, select_open, super_batch

MICRO_BATCH_ROWS = 16
PACE_S = 0.05
"""Of one micro-batch, at least: a busy machine only falls further behind."""


def paced_run(client: SelectionClient, run_id: str, pace_s: float, **settings: Any) -> Run:
    """A run of which a scorer does one micro-batch in `pace_s`."""
    spec = digits.spec(run_id, model="paced", model_config={"pace_s": pace_s}, score="hard_learner", **settings)
    run = client.create_run(spec)
    run.push_weights(digits.gated_weights(1), step=0)
    return run


def micro_batches(count: int, step: int) -> list[Any]:
    return super_batch(digits.gated_candidates(step, MICRO_BATCH_ROWS * count), step=step)


def behind(raw: RawChannel, run_id: str, metrics: Metrics, each: int = 100) -> RawCall:
    """A stream of a run, with half a second's super-batch, done and measured, and three of `each` micro-batches.

    Each is sent when the one before is decoded and queued: what is small decodes no faster than what is large.
    """
    call = raw.call("Select", select_open(run_id), *micro_batches(10, 1))
    wait_until(lambda: metrics.value("preceptor_micro_batch_bytes") > 0, "the first is under way")
    for number in range(3):
        call.send(*micro_batches(each, 2 + number))
        wait_until(partial(_are_waiting, metrics, number * each), "this one waits")
    assert call.answer().selection.step == 1
    return call


def _are_waiting(metrics: Metrics, count: int) -> bool:
    return metrics.value("preceptor_micro_batches_waiting") > count


def test_what_would_come_too_late_is_refused_at_once_and_only_for_the_run_that_is_behind(
    start: Callable[..., RunningService],
) -> None:
    service = start()
    metrics = metrics_of(service)
    with SelectionClient(target_of(service)) as client, RawChannel(target_of(service)) as raw:
        for run_id in ("behind", "other"):
            paced_run(client, run_id, PACE_S, deadline_s=10.0)
        call = behind(raw, "behind", metrics)
        call.send(*micro_batches(1, 5))
        refused = call.answer()
        assert refused.WhichOneof("kind") == "failure", "refusals come before earlier answers"
        assert (refused.failure.step, refused.failure.reason) == (5, "OVERLOADED")
        assert 0.1 <= refused.failure.retry_after.ToNanoseconds() / 1e9 <= 10.0
        assert "the gateway is overloaded: its scorers are behind, for " in refused.failure.message
        assert metrics.value("preceptor_refused_super_batches_total", run="behind") == 1
        assert metrics.value("preceptor_failed_super_batches_total", run="behind") == 0

        other = raw.call("Select", select_open("other"), *micro_batches(1, 1))
        assert other.answer().selection.step == 1
        assert metrics.value("preceptor_super_batches_total", run="behind") < 4
        assert call.answer().selection.step == 2
        wait_until(lambda: metrics.value("preceptor_in_flight_bytes") < 8 * 400, "what was refused is not held")


def test_a_run_that_rather_draws_uniformly_is_answered_at_once(start: Callable[..., RunningService]) -> None:
    service = start()
    with SelectionClient(target_of(service)) as client, RawChannel(target_of(service)) as raw:
        paced_run(client, "hasty", PACE_S, deadline_s=6.0, on_deadline="uniform")
        metrics = metrics_of(service)
        call = behind(raw, "hasty", metrics, each=125)
        second = raw.call("Select", select_open("hasty"), *micro_batches(1, 5))
        assert second.answer().selection.is_fallback
        assert metrics.value("preceptor_super_batches_total", run="hasty") < 5
        call.cancel()


def test_a_refused_super_batch_is_answered_in_the_end(start: Callable[..., RunningService]) -> None:
    service = start()
    with SelectionClient(target_of(service)) as client, RawChannel(target_of(service)) as raw:
        run = paced_run(client, "behind", PACE_S, deadline_s=10.0)
        metrics = metrics_of(service)
        call = behind(raw, "behind", metrics)
        assert run.select(digits.gated_candidates(9), sub_batch_size=1, step=9, timeout_s=60.0).step == 9
        assert metrics.value("preceptor_refused_super_batches_total") >= 1
        call.cancel()


def test_a_huge_super_batch_does_not_hold_up_another_run(start: Callable[..., RunningService]) -> None:
    service = start()
    with SelectionClient(target_of(service)) as client:
        huge, small = (paced_run(client, run_id, 0.03) for run_id in ("huge", "small"))
        future = huge.submit(digits.gated_candidates(1, MICRO_BATCH_ROWS * 125), sub_batch_size=1, step=1)
        metrics = metrics_of(service)
        wait_until(lambda: metrics.value("preceptor_micro_batches_waiting") > 0, "all of it is under way")
        small.select(digits.gated_candidates(1), sub_batch_size=1, step=1)
        assert not future.done()
        assert future.result(30).step == 1


def test_bodies_that_never_end_leave_room_for_other_runs(start: Callable[..., RunningService]) -> None:
    batch = digits.gated_candidates(0, 1000)
    messages = super_batch(batch)
    body = messages[1].chunk.data
    service = start(
        gateway={"body_bytes": 4 * len(body), "max_super_batch_bytes": len(body)}, scorer={"micro_batch_rows": 1000}
    )
    with SelectionClient(target_of(service)) as client, RawChannel(target_of(service)) as raw:
        for run_id in ("stuck", "other"):
            paced_run(client, run_id, 0.0, deadline_s=4.0)
        stuck = [raw.call("Select", select_open("stuck")) for _ in range(3)]
        for number, call in enumerate(stuck[:2]):
            call.send(header(body, step=number, row_count=1000), chunk(body[:9]))
            assert call.receive().HasField("opened")
        metrics = metrics_of(service)
        wait_until(lambda: metrics.value("preceptor_in_flight_bytes") == 18, "both began")
        stuck[2].send(*super_batch(batch, step=2))
        wait_until(lambda: metrics.value("preceptor_bodies_waiting") == 1, "a third of that run waits")
        other = raw.call("Select", select_open("other"), *super_batch(batch, step=1))
        assert other.answer().selection.step == 1
        refused = stuck[2].answer().failure
        assert (refused.step, refused.reason) == (2, "OVERLOADED")
        assert "gateway.body_bytes are taken" in refused.message
        stuck[0].cancel()
        stuck[2].send(*super_batch(batch, step=3))
        assert stuck[2].answer().selection.step == 3
