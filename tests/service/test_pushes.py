"""Pushes against each other and against selection: one wins, and every answer names one version."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest
from safetensors.torch import save

from preceptor import Run, Selection, SelectionClient
from preceptor.v1 import weights_pb2
from tests.service import digits
from tests.service.architectures import Gate
from tests.service.conftest import Control, Store
from tests.service.raw import RawCall, RawChannel, push_messages

PUSHES = 12
SELECTS = 200


@pytest.fixture(autouse=True)
def alive(control: Control) -> Iterator[None]:
    yield
    control.check()


def _begun(
    raw: RawChannel, run: Run, seed: int, step: int, store: Store
) -> tuple[RawCall, weights_pb2.PushWeightsRequest]:
    """A push that lacks nothing but its commit, and that commit; the gateway has taken note of its beginning."""
    header, chunk, commit = push_messages(save(digits.weights(seed)), run_id=run.run_id, step=step)
    uploads = store.uploads()
    call = raw.call("PushWeights", header, chunk)
    store.wait_for_uploads(uploads + 1)
    return call, commit


def test_of_two_pushes_at_once_one_wins_and_the_other_gets_a_conflict(
    raw: RawChannel, run: Run, service_store: Store
) -> None:
    first, commit_first = _begun(raw, run, seed=11, step=5, store=service_store)
    second, commit_second = _begun(raw, run, seed=12, step=6, store=service_store)
    first.send(commit_first)
    assert first.receive().version.version == 2
    second.send(commit_second)
    status = second.status()
    assert (status.code, status.reason) == ("ABORTED", "PUSH_CONFLICT")
    assert "is at learner version 2, and was at 1 when this push began" in status.details
    batch = digits.candidates(0)
    selection = run.select(batch, sub_batch_size=6, step=7)
    assert (selection.learner_version, selection.learner_step) == (2, 5)
    assert selection.indices.tolist() == digits.expected(
        run.spec, batch, digits.weights(11), digits.weights(2), count=6, step=7
    )
    assert run.push_weights(digits.weights(12), step=6).version == 3


def test_a_first_push_does_not_outlive_its_run_nor_reach_the_next_of_that_name(
    raw: RawChannel, client: SelectionClient, run_id: str, service_store: Store
) -> None:
    spec = digits.spec(run_id, score="hard_learner")
    pushes = []
    for _ in range(2):
        pushes.append(_begun(raw, client.create_run(spec), seed=11, step=5, store=service_store))
        client.delete_run(run_id)
    gone, replaced = pushes
    gone[0].send(gone[1])
    assert gone[0].status().reason == "PUSH_CONFLICT"
    assert run_id not in [run.spec.run_id for run in client.list_runs()]
    run = client.create_run(spec)
    assert run.status().learner_version is None
    replaced[0].send(replaced[1])
    assert replaced[0].status().reason == "PUSH_CONFLICT"
    assert run.status().learner_version is None
    assert run.push_weights(digits.weights(12), step=0).version == 1


def test_two_pushes_of_the_same_weights_at_once_are_one_version(
    raw: RawChannel, run: Run, service_store: Store
) -> None:
    pushes = [_begun(raw, run, seed=11, step=5, store=service_store) for _ in range(2)]
    versions = []
    for call, commit in pushes:
        call.send(commit)
        versions.append(call.receive().version)
    assert versions[0] == versions[1]
    assert versions[0].version == 2


def test_a_push_is_invisible_before_its_commit(raw: RawChannel, run: Run, service_store: Store) -> None:
    call, commit = _begun(raw, run, seed=11, step=5, store=service_store)
    assert run.select(digits.candidates(0), sub_batch_size=4, step=1).learner_version == 1
    assert run.status().learner_version == 1
    call.send(commit)
    answer = call.receive()
    assert (answer.replicas_loaded, answer.replicas_asked) == (1, 1)
    assert run.select(digits.candidates(0), sub_batch_size=4, step=2).learner_version == 2


def test_a_super_batch_under_way_keeps_its_version_whatever_is_pushed(gated_run: Run, gate: Gate) -> None:
    batch = digits.gated_candidates(0)
    before = gated_run.select(batch, sub_batch_size=4, step=1)
    arrived = gate.arrived
    gate.close()
    under_way = gated_run.submit(batch, sub_batch_size=4, step=2)
    gate.wait_for(arrived + 1)
    gated_run.push_weights(digits.gated_weights(2), step=1)
    gate.open()
    selection = under_way.result(30)
    assert (selection.learner_version, selection.learner_step, selection.staleness_steps) == (1, 0, 2)
    assert selection.scores.tolist() == before.scores.tolist()
    assert gated_run.select(batch, sub_batch_size=4, step=3).learner_version == 2


def test_the_state_of_the_weights_names_what_is_kept(raw: RawChannel, run: Run) -> None:
    for step in range(1, 7):
        run.push_weights(digits.weights(20 + step), step=step)
    state = raw.call("GetWeights", weights_pb2.GetWeightsRequest(run_id=run.run_id)).receive()
    assert [(kept.version, kept.step) for kept in state.learner_versions] == [(4, 3), (5, 4), (6, 5), (7, 6)]
    assert state.reference.digest == run.status().reference_digest
    assert state.reference.total_bytes == len(save(digits.weights(2)))


def test_under_continuous_pushes_every_answer_is_of_one_version_and_versions_never_go_back(
    target: str, client: SelectionClient, run: Run
) -> None:
    answers: list[Selection] = []
    progress = threading.Condition()

    def push() -> None:
        with SelectionClient(target) as pusher:
            own = pusher.get_run(run.run_id)
            for version in range(2, PUSHES + 2):
                with progress:
                    due = (version - 1) * SELECTS // (PUSHES + 1)
                    if not progress.wait_for(lambda due=due: len(answers) >= due, 60):  # type: ignore[misc]
                        return
                own.push_weights(digits.weights(version), step=version)

    pusher = threading.Thread(target=push)
    pusher.start()
    batches = [digits.candidates(seed) for seed in range(10)]
    futures = []
    for step in range(SELECTS):
        futures.append(run.submit(batches[step % 10], sub_batch_size=6, step=step))
        if step >= 3:
            _note(answers, progress, futures[step - 3].result(30))
    for future in futures[-3:]:
        _note(answers, progress, future.result(30))
    pusher.join(60)
    assert not pusher.is_alive()

    versions = [answer.learner_version or 0 for answer in answers]
    assert all(earlier <= later for earlier, later in itertools.pairwise(versions))
    assert len(set(versions)) >= 3  # how many pushes fall between answers is the machine's to say
    for step in range(0, SELECTS, 7):
        state = digits.weights(versions[step])
        assert answers[step].indices.tolist() == digits.expected(
            run.spec, batches[step % 10], state, digits.weights(2), count=6, step=step
        )
    assert run.select(batches[0], sub_batch_size=6, step=SELECTS).learner_version == PUSHES + 1


def _note(answers: list[Selection], progress: threading.Condition, answer: Selection) -> None:
    with progress:
        answers.append(answer)
        progress.notify_all()
