"""The online model lives in the service: what it selects, and what it becomes, is what it is in a plain loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preceptor import CoTraining, Run, SelectionClient
from preceptor.errors import (
    CoTrainedError,
    DeadlineExceededError,
    DivergedError,
    InvalidSuperBatchError,
    OverloadedError,
    StepExistsError,
    StepsNotKeptError,
    TooLargeError,
)
from preceptor.torch import SelectingLoader
from preceptor_service.app import RunningService
from preceptor_service.co_training.blocks import Handout
from preceptor_service.co_training.journal import Answer, Journal, entry_content
from preceptor_service.config import WeightsConfig
from preceptor_service.storage import open_storage
from preceptor_service.store_backup import back_up, restore
from preceptor_service.weight_store import WeightStore
from tests.service import co_trained, digits
from tests.service.co_trained import REFERENCE, naive, same, select, weights_of
from tests.service.conftest import Metrics, Store, metrics_of, target_of, wait_until
from tests.service.mortal_service import began_at, serving

WAYS = {
    "algorithm 1": (CoTraining(learning_rate=0.01), 6),
    "blocks, sgd with momentum": (
        CoTraining(0.05, "sgd", momentum=0.9, weight_decay=0.001, publish_every=3, warm_up_steps=2, seed=3),
        9,
    ),
    "a block of lag, decaying": (CoTraining(0.02, publish_every=2, lag=1, total_steps=8, first_step=5), 10),
    "two ranks": (CoTraining(0.01, publish_every=2, ranks=2, lag=1), 6),
}


def ready(client: SelectionClient, run_id: str, co_training: CoTraining, **settings: object) -> Run:
    run = client.create_run(co_trained.spec(run_id, co_training, **settings))
    run.push_reference(REFERENCE)
    return run


@pytest.mark.parametrize("way", WAYS)
def test_selections_versions_and_weights_are_those_of_a_plain_loop(
    client: SelectionClient, service_store: Store, run_id: str, way: str
) -> None:
    how, steps = WAYS[way]
    run = ready(client, run_id, how)
    story = naive(run.spec, steps)
    for step in range(how.first_step, how.first_step + steps):
        answers = [
            run.submit(co_trained.offered(step, rank), co_trained.COUNT, step=step, rank=rank)
            for rank in range(how.ranks)
        ]
        for rank, answer in enumerate(answers):
            selection = answer.result(20)
            assert selection.indices.tolist() == story.indices[step, rank]
            assert selection.learner_version == story.scored_under[step] + 1
            assert selection.learner_step is not None
            assert selection.staleness_steps == step - selection.learner_step
    assert same(weights_of(service_store.path, run_id, len(story.weights)), story.weights[-1])


def test_a_reference_that_is_trained_in_parallel_is_that_of_a_plain_loop_too(
    client: SelectionClient, service_store: Store, run_id: str
) -> None:
    how = CoTraining(learning_rate=0.02, publish_every=2, lag=1, reference_examples=12, seed=4)
    run = client.create_run(co_trained.spec(run_id, how))
    story = naive(run.spec, 8)
    for step in range(8):
        selection = select(run, step)
        assert selection.indices.tolist() == story.indices[step, 0]
        assert selection.learner_version == story.scored_under[step] + 1
    assert same(weights_of(service_store.path, run_id, 5), story.weights[-1])
    assert same(weights_of(service_store.path, run_id, 5, "reference_digest"), story.references[-1])
    assert not same(story.weights[-1], story.references[-1])
    with pytest.raises(CoTrainedError, match=r"has co_training\.reference_examples: the service trains its ref"):
        run.push_reference(REFERENCE)


def test_what_the_reference_is_trained_on_is_charged(client: SelectionClient, run_id: str) -> None:
    run = client.create_run(co_trained.spec(run_id, CoTraining(reference_examples=12)))
    for step in range(2):
        select(run, step)
    cost = run.status().cost
    assert cost is not None
    # Both are as large as the learner: they train on 8 and on 12 for its 8, and score four times as many. They begin
    # alike, so that one forward pass gives the first step's losses of both.
    assert (cost.ratio, cost.reference_scored_share) == (4, 1 / 2)
    per_update = 1 + 1 + 12 / 8 + 4 / 3 * (1 + 1 / 2)
    assert cost.compute_ratio == pytest.approx((1 - 0.46) * per_update)
    assert cost.break_even_savings == pytest.approx(1 - 1 / per_update)


def test_without_scores_the_online_model_learns_from_what_was_drawn_all_the_same(
    client: SelectionClient, service_store: Store, run_id: str
) -> None:
    run = ready(client, run_id, CoTraining(learning_rate=0.01), select_from_step=3)
    story = naive(run.spec, 5)
    for step in range(5):
        selection = select(run, step)
        assert selection.indices.tolist() == story.indices[step, 0]
        assert selection.learner_version == (None if step < 3 else step + 1)
    assert same(weights_of(service_store.path, run_id, 6), story.weights[-1])


def test_the_learner_is_not_pushed_and_the_reference_is(client: SelectionClient, run_id: str) -> None:
    run = ready(client, run_id, CoTraining())
    with pytest.raises(CoTrainedError, match="has co_training: the service trains its learner copy itself"):
        run.push_weights(digits.weights(1), step=0)
    assert select(run, 0).learner_version == 1


def test_a_run_begins_with_version_1_at_its_first_step(client: SelectionClient, run_id: str) -> None:
    run = ready(client, run_id, CoTraining(first_step=7))
    status = run.status()
    assert (status.learner_version, status.learner_step, status.last_step) == (1, 7, None)
    assert run.next_step() == 7
    scores = run.score(co_trained.offered(0))
    assert scores.learner_version == 1
    assert scores.learner_losses is not None
    assert scores.learner_losses.tolist() == pytest.approx(
        digits.losses(co_trained.initial(run.spec), co_trained.offered(0)), rel=1e-4, abs=1e-5
    )


def test_a_step_that_was_left_out_is_named(client: SelectionClient, run_id: str) -> None:
    run = ready(client, run_id, CoTraining(ranks=2), deadline_s=3.0)
    for rank in (0, 1):
        select(run, 0, rank)
    select(run, 1, 0)
    with pytest.raises(DeadlineExceededError, match="it is trained on step 1 of rank 1, which was not handed out"):
        select(run, 2)
    select(run, 1, 1)
    assert select(run, 2).learner_version == 3


@pytest.mark.parametrize(
    ("step", "rank", "complaint"),
    [
        (6, 0, "step is 6, and co_training.first_step of run .* is 7; begin there"),
        (7, 1, "rank is 1, .* use ranks from 0 to 0"),
    ],
)
def test_what_is_no_step_of_the_run_is_refused(
    client: SelectionClient, run_id: str, step: int, rank: int, complaint: str
) -> None:
    run = ready(client, run_id, CoTraining(first_step=7))
    with pytest.raises(InvalidSuperBatchError, match=complaint):
        select(run, step, rank)
    assert select(run, 7).learner_version == 1


def test_a_fallback_is_trained_on_like_any_other(client: SelectionClient, service_store: Store, run_id: str) -> None:
    run = ready(client, run_id, CoTraining(learning_rate=0.01, ranks=2), deadline_s=0.4, on_deadline="uniform")
    late = select(run, 1)  # nobody has offered step 0
    assert late.is_fallback
    assert late.indices.tolist() == digits.as_uniform(run.spec, 32, co_trained.COUNT, step=1)
    for rank in (0, 1):
        assert not select(run, 0, rank).is_fallback
    select(run, 1, 1)
    assert select(run, 2).learner_version == 3
    again = select(run, 1)
    assert again.is_fallback
    assert again.indices.tolist() == late.indices.tolist()


def test_an_online_model_that_diverges_is_told(client: SelectionClient, run_id: str) -> None:
    run = ready(client, run_id, CoTraining(1e3, "sgd"), select_from_step=6)
    for step in range(6):
        select(run, step)
    for step in (6, 7):  # for ever
        with pytest.raises(DivergedError, match=r"diverged at step [0-5], its loss is .*; begin another run with"):
            select(run, step)


def test_other_candidates_for_a_used_step_are_refused_though_the_gateway_was_restarted(
    start: Callable[..., RunningService], tmp_path: Path, run_id: str
) -> None:
    before = start(tmp_path / "kept")
    with SelectionClient(target_of(before)) as client:
        run = ready(client, run_id, CoTraining(publish_every=2))
        given = [select(run, step).indices.tolist() for step in range(5)]
    before.stop()
    after = start(tmp_path / "kept")
    with SelectionClient(target_of(after)) as client:
        run = client.get_run(run_id)
        assert run.status().last_step == 4
        for step in (0, 3, 4):
            with pytest.raises(StepExistsError, match="used for other candidates"):
                run.select(co_trained.offered(99), co_trained.COUNT, step=step)
        assert [select(run, step).indices.tolist() for step in range(5)] == given
        assert metrics_of(after).value("preceptor_super_batches_total", run=run_id) == 0


def test_a_trainer_that_goes_back_gets_what_it_got_though_versions_expired_and_rows_are_gone(
    start: Callable[..., RunningService], tmp_path: Path, run_id: str
) -> None:
    store = tmp_path / "kept"
    before = start(store, weights={"keep_versions": 2, "grace_s": 61})
    with SelectionClient(target_of(before)) as client:
        run = ready(client, run_id, CoTraining(learning_rate=0.01))
        given = [select(run, step) for step in range(8)]
        weights_of(store, run_id, 9)
    before.stop()
    journal = Journal(WeightStore.open(WeightsConfig(path=store)).storage)
    assert journal.clear(run_id, before_step=8, limit_bytes=1 << 20, known=lambda handout: None)
    assert journal.handouts(run_id) == set()
    after = start(store, weights={"keep_versions": 2, "grace_s": 61})
    with SelectionClient(target_of(after)) as client:
        run = client.get_run(run_id)
        for step, selection in enumerate(given):
            again = select(run, step)
            assert again.indices.tolist() == selection.indices.tolist()
            assert again.scores.tolist() == selection.scores.tolist()
            assert again.learner_version == selection.learner_version
        assert select(run, 8).indices.tolist() == naive(run.spec, 9).indices[8, 0]


def test_answers_beyond_their_bound_are_said_to_be_gone(
    start: Callable[..., RunningService], tmp_path: Path, run_id: str
) -> None:
    store = tmp_path / "kept"
    before = start(store)
    with SelectionClient(target_of(before)) as client:
        run = ready(client, run_id, CoTraining())
        for step in range(4):
            select(run, step)
        weights_of(store, run_id, 5)
    before.stop()
    journal = Journal(WeightStore.open(WeightsConfig(path=store)).storage)
    journal.clear(run_id, before_step=2, limit_bytes=1 << 20, known=lambda handout: None)
    (kept,) = journal.kept(run_id)
    journal.clear(run_id, before_step=4, limit_bytes=kept.total_bytes * 3 // 2, known=lambda handout: None)
    after = start(store)
    with SelectionClient(target_of(after)) as client:
        run = client.get_run(run_id)
        with pytest.raises(
            StepsNotKeptError, match=r"answer to step 1 .* is not kept any more \(co_training.answers_by"
        ):
            select(run, 1)
        assert select(run, 3).learner_version == 4


def test_two_gateways_train_one_model(start: Callable[..., RunningService], tmp_path: Path, run_id: str) -> None:
    how = CoTraining(learning_rate=0.01, publish_every=2, ranks=2)
    targets = [target_of(start(tmp_path / "shared")) for _ in range(2)]
    with SelectionClient(targets[0]) as here, SelectionClient(targets[1]) as there:
        runs = [ready(here, run_id, how), there.get_run(run_id)]
        story = naive(runs[0].spec, 8)
        for step in range(8):
            answers = [
                run.submit(co_trained.offered(step, rank), co_trained.COUNT, step=step, rank=rank)
                for rank, run in enumerate(runs)
            ]
            for rank, answer in enumerate(answers):
                assert answer.result(20).indices.tolist() == story.indices[step, rank]
    assert same(weights_of(tmp_path / "shared", run_id, 5), story.weights[-1])


def test_a_gateway_takes_over_the_block_that_another_one_left(
    start: Callable[..., RunningService], tmp_path: Path, run_id: str
) -> None:
    store = tmp_path / "shared"
    here, there = start(store), start(store)
    with SelectionClient(target_of(here)) as client:
        run = ready(client, run_id, CoTraining(learning_rate=0.01))
        story = naive(run.spec, 2)
    journal = Journal(WeightStore.open(WeightsConfig(path=store)).storage)
    drawn = np.array(story.indices[0, 0])
    rows = {name: values[drawn] for name, values in co_trained.offered(0).items()}
    nothing = np.empty(0, np.float32)
    # As a gateway leaves it that dies between the journal and the training.
    answer = Answer("another", drawn, nothing, nothing, None, None, None, 0)
    journal.create(journal.open(run_id), Handout(0, 0), entry_content(Handout(0, 0), {"online": rows}, answer))
    with SelectionClient(target_of(there)) as client:
        selection = select(client.get_run(run_id), 1)
    assert selection.indices.tolist() == story.indices[1, 0]
    assert selection.learner_version == 2


def test_killed_between_steps_and_while_it_trains_the_service_goes_on_as_if_nothing_had_been(
    tmp_path: Path, run_id: str
) -> None:
    store, hold = tmp_path / "store", tmp_path / "hold"
    how = CoTraining(learning_rate=0.02, publish_every=2, lag=1)
    model = {"model": "dawdler", "model_config": {**digits.MODEL, "hold": str(hold)}}
    steps = iter(range(10))
    found: dict[int, list[int]] = {}

    def go_on(run: Run, count: int) -> None:
        for step in itertools.islice(steps, count):
            found[step] = select(run, step, timeout_s=30).indices.tolist()

    with serving(store) as (target, process), SelectionClient(target) as client:
        run = ready(client, run_id, how, **model)
        go_on(run, 3)
        process.kill()  # between steps
    with serving(store) as (target, process), SelectionClient(target) as client:
        run = client.get_run(run_id)
        assert select(run, 2).indices.tolist() == found[2]
        weights_of(store, run_id, 2)
        hold.touch()
        go_on(run, 1)
        wait_until(began_at(hold).exists, "an update began")
        process.kill()  # in the middle of a training
    hold.unlink()
    with serving(store) as (target, _), SelectionClient(target) as client:
        go_on(client.get_run(run_id), 10)
        trained = weights_of(store, run_id, 6)
    plain = replace(run.spec, model="small_cnn", model_config=digits.MODEL)
    story = naive(plain, 10)
    assert found == {step: story.indices[step, 0] for step in range(10)}
    assert same(trained, story.weights[-1])


def test_a_journal_that_cannot_hold_a_block_refuses_it(start: Callable[..., RunningService], run_id: str) -> None:
    service = start(co_training={"journal_bytes": 5000})
    with SelectionClient(target_of(service)) as client:
        run = ready(client, run_id, CoTraining(publish_every=10))
        with pytest.raises(
            TooLargeError, match=r"sub-batch of \d+ bytes makes blocks of \d+ .*co_training.journal_byt"
        ):
            select(run, 0)


def test_a_journal_that_is_full_holds_steps_up(start: Callable[..., RunningService], run_id: str) -> None:
    service = start(co_training={"journal_bytes": 3500})
    with SelectionClient(target_of(service)) as client:
        run = ready(client, run_id, CoTraining(), deadline_s=0.3, on_deadline="uniform")
        for step in (1, 2):
            assert select(run, step).is_fallback  # nobody has offered step 0
        with pytest.raises(OverloadedError, match=r"journal of run .* is full: .* on step 0 of rank 0, which"):
            select(run, 3)
        for step in range(5):
            select(run, step, timeout_s=30)


def test_an_epoch_that_is_left_early_leaves_no_step_out(client: SelectionClient, run_id: str) -> None:
    run = ready(client, run_id, CoTraining(learning_rate=0.01))
    batches = SelectingLoader([co_trained.offered(step) for step in range(6)], run, co_trained.COUNT, prefetch=2)
    for _ in range(2):
        for number, _ in enumerate(batches):
            if number == 1:
                break
    for _ in batches:
        pass
    assert batches.step == 4 + 4 + 6
    assert batches.last_selection is not None
    assert batches.last_selection.learner_version == batches.step


def test_the_training_of_the_online_model_is_charged_and_counted(
    client: SelectionClient, metrics: Metrics, run_id: str
) -> None:
    run = ready(client, run_id, CoTraining(publish_every=2))
    for step in range(4):
        select(run, step)
    wait_until(
        lambda: metrics.value("preceptor_co_trained_steps_total", run=run_id) == 4, "two blocks of two were trained"
    )
    assert metrics.value("preceptor_co_training_seconds_total", run=run_id) > 0
    assert metrics.value("preceptor_co_training_loss", run=run_id) > 0
    spent = metrics.value("preceptor_co_training_seconds_total", run=run_id)
    assert run.status().co_training_s == pytest.approx(spent)
    cost = run.status().cost
    assert cost is not None
    # The online model is as large as the learner here: its training, and twice the forward pass on four times the rows.
    assert cost.break_even_savings == pytest.approx(1 - (1 - 1) / (1 + 1 + 4 / 3 * 2))
    assert cost.compute_ratio == pytest.approx((1 - 0.46) * (1 + 1 + 4 / 3 * 2) + 1)


def test_a_deleted_run_leaves_no_journal_and_begins_anew(
    client: SelectionClient, service_store: Store, run_id: str
) -> None:
    run = ready(client, run_id, CoTraining(learning_rate=0.01))
    first = [select(run, step).indices.tolist() for step in range(3)]
    client.delete_run(run_id)
    assert not (service_store.path / "runs" / run_id).exists()
    run = ready(client, run_id, CoTraining(learning_rate=0.01))
    assert [select(run, step).indices.tolist() for step in range(3)] == first
    client.delete_run(run_id)


def test_a_run_that_was_backed_up_goes_on_elsewhere(
    start: Callable[..., RunningService], tmp_path: Path, run_id: str
) -> None:
    before = start(tmp_path / "here")
    with SelectionClient(target_of(before)) as client:
        run = ready(client, run_id, CoTraining(learning_rate=0.01, publish_every=2))
        story = naive(run.spec, 8)
        for step in range(5):
            select(run, step)
    before.stop()
    back_up(open_storage(WeightsConfig(path=tmp_path / "here")), tmp_path / "backup.tar")
    restore(tmp_path / "backup.tar", open_storage(WeightsConfig(path=tmp_path / "there")))
    after = start(tmp_path / "there")
    with SelectionClient(target_of(after)) as client:
        run = client.get_run(run_id)
        assert select(run, 4).indices.tolist() == story.indices[4, 0]
        for step in range(5, 8):
            assert select(run, step).indices.tolist() == story.indices[step, 0]
        assert same(weights_of(tmp_path / "there", run_id, 5), story.weights[-1])
