"""Held-back steps: drawn uniformly, marked, counted, replayed; and everything else as without them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from preceptor import SelectionClient
from preceptor_service.ledger.replay import ReplayFile
from preceptor_service.method_registry import MethodRegistry
from tests.naive.selection import held_back
from tests.service import digits
from tests.service.conftest import Control, Metrics

LEARNER, REFERENCE = digits.weights(1), digits.weights(2)
STEPS = range(24)


@pytest.fixture(autouse=True)
def alive(control: Control) -> Iterator[None]:
    yield
    control.check()


@pytest.mark.parametrize("selector", ["softmax", "proportional"])
def test_held_back_steps_are_uniform_marked_and_counted_and_the_others_equal_the_naive_loop(
    client: SelectionClient, run_id: str, metrics: Metrics, tmp_path: Path, selector: str
) -> None:
    settings = {"control_fraction": 0.4, "control_block_steps": 3, "select_from_step": 3, "ledger": True}
    specs = (digits.spec(run_id, seed=seed, selector=selector, **settings) for seed in itertools.count())
    run = client.create_run(next(spec for spec in specs if 0 < sum(held_back(spec, step) for step in STEPS[3:]) < 21))
    run.push_reference(REFERENCE)
    run.push_weights(LEARNER, step=0)
    held = []
    for step in STEPS:
        batch = digits.candidates(step)
        answer = run.select(batch, sub_batch_size=8, step=step)
        assert answer.indices.tolist() == digits.expected(run.spec, batch, LEARNER, REFERENCE, 8, step)
        assert (len(answer.scores), answer.is_fallback) == (0 if answer.is_control or step < 3 else 32, False)
        assert answer.is_control == (step >= 3 and held_back(run.spec, step))
        if answer.is_control:
            assert answer.indices.tolist() == digits.as_uniform(run.spec, rows=32, count=8, step=step)
            assert answer.weights is None or answer.weights.tolist() == [1.0] * 8
            held.append(step)
    assert 0 < len(held) < 21
    status = run.status()
    assert (status.control_super_batches, status.fallbacks) == (len(held), 0)
    assert 0 < status.forward_s < status.answer_s
    scored = 32 * sum(1 for step in STEPS[3:] if step not in held)
    assert status.cost is not None
    assert status.cost.ratio == scored / (8 * len(STEPS))
    per_candidate = status.cost.learner_copy_flops + status.cost.reference_flops
    assert metrics.value("preceptor_scoring_flops_total", run=run_id) == scored * per_candidate
    assert metrics.value("preceptor_control_super_batches_total", run=run_id) == len(held)
    assert run.export_ledger(tmp_path / "ledger.parquet").steps == len(STEPS)
    replayed = list(ReplayFile(tmp_path / "ledger.parquet").replayed(MethodRegistry()))
    assert [found.difference for found in replayed] == [None] * len(STEPS)
    again = run.select(digits.candidates(held[0]), sub_batch_size=8, step=held[0])
    assert again.is_control
    assert run.status().control_super_batches == len(held)


def test_a_held_back_step_needs_no_weights_and_a_run_without_a_control_arm_has_no_series(
    client: SelectionClient, run_id: str, metrics: Metrics
) -> None:
    run = client.create_run(digits.spec(run_id, control_fraction=0.99))
    step = next(step for step in range(100) if held_back(run.spec, step))
    assert run.select(digits.candidates(0), sub_batch_size=4, step=step).is_control
    plain = client.create_run(digits.spec(f"{run_id}-plain", score="uniform"))
    assert not plain.select(digits.candidates(0), sub_batch_size=4, step=step).is_control
    assert plain.spec.control_block_steps == client.get_run(plain.run_id).spec.control_block_steps == 1
    named = {labels for name, labels in metrics.series() if name == "preceptor_control_super_batches_total"}
    assert frozenset({("run", run_id)}) in named
    assert frozenset({("run", plain.run_id)}) not in named
