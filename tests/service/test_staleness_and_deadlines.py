"""What a run says shall happen when the learner copy is too old, or scoring too slow."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from preceptor import Run, SelectionClient
from preceptor.errors import DeadlineExceededError
from tests.service import digits
from tests.service.architectures import Gate
from tests.service.conftest import Control, wait_until
from tests.service.raw import RawChannel, select_open, super_batch

SHORT_S = 0.2


@pytest.fixture(autouse=True)
def alive(control: Control) -> Iterator[None]:
    yield
    control.check()


def _bounded(client: SelectionClient, run_id: str, **settings: Any) -> Run:
    """A run with weights of step 10 that may lag five steps."""
    run = client.create_run(digits.spec(run_id, max_staleness_steps=5, seed=7, **settings))
    run.push_reference(digits.weights(2))
    run.push_weights(digits.weights(1), step=10)
    return run


@pytest.mark.parametrize("policy", ["wait", "serve", "uniform"])
def test_within_the_bound_the_copy_is_used(client: SelectionClient, run_id: str, policy: str) -> None:
    run = _bounded(client, run_id, on_stale=policy)
    for step, staleness in ((0, -10), (10, 0), (15, 5)):
        selection = run.select(digits.candidates(step), sub_batch_size=4, step=step)
        assert (selection.staleness_steps, selection.is_fallback) == (staleness, False)
        assert selection.indices.tolist() == digits.expected(
            run.spec, digits.candidates(step), digits.weights(1), digits.weights(2), count=4, step=step
        )


def test_beyond_the_bound_serve_uses_the_old_copy_and_says_how_old(client: SelectionClient, run_id: str) -> None:
    run = _bounded(client, run_id, on_stale="serve")
    selection = run.select(digits.candidates(0), sub_batch_size=4, step=16)
    assert (selection.staleness_steps, selection.is_fallback) == (6, False)
    assert selection.indices.tolist() == digits.expected(
        run.spec, digits.candidates(0), digits.weights(1), digits.weights(2), count=4, step=16
    )


def test_beyond_the_bound_uniform_draws_as_the_uniform_selector(client: SelectionClient, run_id: str) -> None:
    run = _bounded(client, run_id, on_stale="uniform")
    selection = run.select(digits.candidates(0), sub_batch_size=4, step=16)
    assert selection.is_fallback
    assert selection.indices.tolist() == digits.as_uniform(run.spec, rows=32, count=4, step=16)
    assert len(selection.scores) == 0
    assert selection.learner_version is None
    assert run.status().fallbacks == 1
    run.push_weights(digits.weights(3), step=16)
    assert not run.select(digits.candidates(0), sub_batch_size=4, step=17).is_fallback


def test_beyond_the_bound_wait_waits_for_the_push(
    client: SelectionClient, raw: RawChannel, run_id: str, control: Control
) -> None:
    run = _bounded(client, run_id, on_stale="wait")
    call = raw.call("Select", select_open(run_id))
    call.send(*super_batch(digits.candidates(0), step=16, sub_batch_size=4))
    control.check()  # another run is answered meanwhile
    run.push_weights(digits.weights(3), step=12)
    selection = call.answer().selection
    assert (selection.learner_version, selection.staleness_steps) == (2, 4)
    call.cancel()


def test_waiting_ends_with_a_push_that_is_fresh_enough(client: SelectionClient, raw: RawChannel, run_id: str) -> None:
    run = _bounded(client, run_id, on_stale="wait")
    call = raw.call("Select", select_open(run_id))
    call.send(*super_batch(digits.candidates(0), step=30, sub_batch_size=4))
    for step in (11, 12, 25):  # the first two are too old
        run.push_weights(digits.weights(step), step=step)
    selection = call.answer().selection
    assert (selection.learner_version, selection.learner_step) == (4, 25)
    call.cancel()


def test_waiting_for_a_push_in_vain_ends_at_the_deadline(client: SelectionClient, run_id: str) -> None:
    run = _bounded(client, run_id, on_stale="wait", deadline_s=SHORT_S)
    with pytest.raises(
        DeadlineExceededError, match="is 10 steps old, max_staleness_steps is 5; push more often or raise"
    ) as raised:
        run.select(digits.candidates(0), sub_batch_size=4, step=20)
    assert raised.value.code == "DEADLINE_EXCEEDED"
    assert run.status().failures == 1


def test_waiting_in_vain_may_end_in_a_uniform_draw(client: SelectionClient, run_id: str) -> None:
    run = _bounded(client, run_id, on_stale="wait", deadline_s=SHORT_S, on_deadline="uniform")
    selection = run.select(digits.candidates(0), sub_batch_size=4, step=20)
    assert selection.is_fallback
    assert selection.indices.tolist() == digits.as_uniform(run.spec, rows=32, count=4, step=20)


def test_without_a_bound_any_age_is_served(client: SelectionClient, run_id: str, run: Run) -> None:
    selection = run.select(digits.candidates(0), sub_batch_size=4, step=10**9)
    assert (selection.staleness_steps, selection.is_fallback) == (10**9, False)


def _slow(client: SelectionClient, run_id: str, **settings: Any) -> Run:
    run = client.create_run(digits.gated_spec(run_id, seed=5, deadline_s=SHORT_S, **settings))
    run.push_weights(digits.gated_weights(1), step=0)
    return run


def _recovers(run: Run) -> None:
    """Waits for a scored answer; on a busy machine the short deadline may pass a few times more."""
    steps = itertools.count(100)

    def is_scored() -> bool:
        try:
            return not run.select(digits.gated_candidates(1), sub_batch_size=4, step=next(steps)).is_fallback
        except DeadlineExceededError:
            return False

    wait_until(is_scored, "a super-batch was scored in time again")


def test_at_the_deadline_raise_says_what_to_do(client: SelectionClient, run_id: str, gate: Gate) -> None:
    run = _slow(client, run_id, on_deadline="raise")
    gate.close()
    with pytest.raises(DeadlineExceededError, match=r"candidates were not scored within 0\.2 s; add scorers"):
        run.select(digits.gated_candidates(0), sub_batch_size=4, step=3)
    gate.open()
    _recovers(run)


def test_at_the_deadline_uniform_draws_as_the_uniform_selector(
    client: SelectionClient, run_id: str, gate: Gate
) -> None:
    run = _slow(client, run_id, on_deadline="uniform")
    gate.close()
    selection = run.select(digits.gated_candidates(0, rows=40), sub_batch_size=6, step=3)
    assert selection.is_fallback
    assert selection.indices.tolist() == digits.as_uniform(run.spec, rows=40, count=6, step=3)
    assert run.status().fallbacks == 1
    gate.open()
    _recovers(run)


def test_at_the_deadline_wait_asks_again_until_it_is_scored(client: SelectionClient, run_id: str, gate: Gate) -> None:
    run = _slow(client, run_id, on_deadline="wait")
    gate.close()
    batch = digits.gated_candidates(0)
    waiting = run.submit(batch, sub_batch_size=4, step=3)
    wait_until(lambda: run.status().failures >= 2, "two deadlines went by")
    assert not waiting.done()
    gate.open()
    selection = waiting.result(20)
    assert not selection.is_fallback
    assert selection.indices.tolist() == run.select(batch, sub_batch_size=4, step=3).indices.tolist()


def test_a_fallback_is_repeated_as_it_was(client: SelectionClient, run_id: str, gate: Gate) -> None:
    run = _slow(client, run_id, on_deadline="uniform")
    gate.close()
    first = run.select(digits.gated_candidates(0, rows=40), sub_batch_size=6, step=3)
    gate.open()
    again = run.select(digits.gated_candidates(0, rows=40), sub_batch_size=6, step=3)
    assert again.is_fallback
    assert again.indices.tolist() == first.indices.tolist()


def test_scoring_alone_fails_at_the_deadline_whatever_the_policy(
    client: SelectionClient, run_id: str, gate: Gate
) -> None:
    run = _slow(client, run_id, on_deadline="uniform")
    gate.close()
    with pytest.raises(DeadlineExceededError, match=r"scored within 0\.2 s; send them at once, or raise"):
        run.score(digits.gated_candidates(0))


def test_a_late_super_batch_leaves_the_scorer_to_others(
    client: SelectionClient, run_id: str, gate: Gate, control: Control
) -> None:
    run = _slow(client, run_id, on_deadline="uniform")
    gate.close()
    futures = [run.submit(digits.gated_candidates(step, rows=64), sub_batch_size=4, step=step) for step in range(4)]
    assert all(future.result(30).is_fallback for future in futures)
    gate.open()
    control.check()
    wait_until(lambda: gate.arrived <= 2, "only what had begun was finished")
