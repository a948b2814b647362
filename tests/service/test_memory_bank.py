"""A memory bank over the wire: scoring runs ahead of training, each step happens once, and nothing is lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from preceptor import MemoryBank, Run, SelectionClient, batches
from preceptor.errors import (
    BankOffError,
    BankShortError,
    DeadlineExceededError,
    DiskFullError,
    InvalidRunError,
    InvalidSuperBatchError,
    RunNotFoundError,
    StepExistsError,
    StepForgottenError,
    TooLargeError,
    UnavailableError,
    WeightsMissingError,
)
from preceptor.v1 import memory_bank_pb2, selection_pb2
from preceptor_service.app import RunningService
from preceptor_service.ledger.replay import Replayed, ReplayFile
from preceptor_service.memory_bank.rows import ROW_BYTES
from preceptor_service.method_registry import MethodRegistry
from preceptor_service.schedule import is_held_back
from preceptor_service.storage.directory import DirectoryStorage
from tests.naive.memory_bank import NaiveBank
from tests.service import digits
from tests.service.architectures import Gate
from tests.service.conftest import MAX_SUPER_BATCH_BYTES, Control, Metrics, Store, metrics_of, target_of, wait_until
from tests.service.raw import RawChannel

B = 32


@pytest.fixture(autouse=True)
def alive(control: Control) -> Iterator[None]:
    yield
    control.check()


def ready(client: SelectionClient, run_id: str, bank: MemoryBank | None = None, **settings: Any) -> Run:
    """A run with a bank and weights, those of the learner pushed at step 0."""
    run = client.create_run(digits.spec(run_id, memory_bank=bank or MemoryBank(1000), **settings))
    run.push_reference(digits.weights(2))
    run.push_weights(digits.weights(1), step=0)
    return run


def remember(run: Run, step: int, first: int | None = None, rank: int = 0) -> Any:
    """The candidates of `step`, whose ids count up from `first`."""
    start = step * B if first is None else first
    batch = digits.candidates(step) if first is None else from_pool(first)
    return run.remember(batch, np.arange(start, start + B), step=step, rank=rank)


def from_pool(first: int) -> dict[str, Any]:
    """The examples of B ids from `first` on, the same ones for an id whenever it is offered."""
    return {name: values[first : first + B] for name, values in digits.candidates(4, rows=1000 + 8 * B).items()}


@pytest.mark.parametrize("selector", ["softmax", "proportional", "top_k"])
def test_what_is_sampled_is_what_the_naive_bank_samples(client: SelectionClient, run_id: str, selector: str) -> None:
    bank = MemoryBank(3 * B, max_times_sampled=2, max_staleness_steps=15)
    run = ready(client, run_id, bank, selector=selector, score="hard_learner", seed=4)
    naive = NaiveBank(run.spec, bank)
    pushed = {1: 0}
    for step in range(12):
        remembered = remember(run, step, first=step * 20)
        assert remembered.scores.tolist() == run.score(from_pool(step * 20)).scores.tolist()
        assert remembered.learner_version is not None
        stamp = (remembered.learner_version, pushed[remembered.learner_version])
        assert remembered.learner_step == stamp[1]
        ids = range(step * 20, step * 20 + B)
        assert remembered.evicted == naive.put(ids, remembered.scores.tolist(), *stamp)
        before = dict(naive.examples)
        sampled = run.sample(6, step=2 * step, rank=1)
        assert sampled.example_id.tolist() == naive.sample(6, 2 * step, 1)
        chosen = [before[name] for name in sampled.example_id.tolist()]
        assert sampled.scores.tolist() == [example.score for example in chosen]
        assert sampled.learner_versions is not None
        assert sampled.staleness_steps is not None
        assert sampled.learner_versions.tolist() == [example.learner_version for example in chosen]
        assert sampled.staleness_steps.tolist() == [2 * step - example.learner_step for example in chosen]
        assert (sampled.weights is not None) == (selector == "proportional")
        assert sampled.examples == len(naive.examples)
        if step % 4 == 3:
            version = run.push_weights(digits.weights(step + 10), step=2 * step).version
            pushed[version] = 2 * step


def test_scores_without_a_learner_have_no_version_and_texts_are_ids_too(client: SelectionClient, run_id: str) -> None:
    run = client.create_run(
        digits.spec(run_id, score="easy_reference", memory_bank=MemoryBank(B, max_staleness_steps=0))
    )
    run.push_reference(digits.weights(2))
    texts = [f"bild-{i}.jpg" for i in range(B)]
    remembered = run.remember(digits.candidates(1), texts, step=0)
    assert (remembered.learner_version, remembered.learner_step) == (None, None)
    sampled = run.sample(B, step=10**6)
    assert sorted(sampled.example_id) == sorted(texts)
    assert (sampled.learner_versions, sampled.staleness_steps, sampled.examples) == (None, None, 0)


def test_a_repeat_gets_the_first_answer_though_the_weights_are_others_by_now(
    client: SelectionClient, target: str, run_id: str
) -> None:
    run = ready(client, run_id)
    first, sampled = remember(run, 0), run.sample(8, step=0)
    run.push_weights(digits.weights(9), step=5)
    with SelectionClient(target) as other:
        for handle in (run, other.get_run(run_id)):
            again, resampled = remember(handle, 0), handle.sample(8, step=0)
            assert again.scores.tobytes() == first.scores.tobytes()
            assert (again.learner_version, again.examples) == (1, B)
            assert list(resampled.example_id) == list(sampled.example_id)
            assert resampled.scores.tobytes() == sampled.scores.tobytes()
    with pytest.raises(StepExistsError, match="step 0 of rank 0 was used to put other candidates in"):
        remember(run, 0, first=1)
    with pytest.raises(StepExistsError, match="step 0 of rank 0 was used to sample 8 examples"):
        run.sample(9, step=0)
    assert run.sample(B - 8, step=1).examples == 0


def test_a_bank_asked_for_more_than_it_holds_loses_nothing(
    client: SelectionClient, run_id: str, metrics: Metrics
) -> None:
    run = ready(client, run_id)
    with pytest.raises(BankShortError, match=f"the bank of run '{run_id}' holds 0 examples, and 1 were to be sampled"):
        run.sample(1, step=0)
    remember(run, 0)
    with pytest.raises(BankShortError, match=f"holds {B} examples, and {B + 1} were to be sampled; remember more"):
        run.sample(B + 1, step=0)
    assert metrics.value("preceptor_bank_short_samples_total", run=run_id) == 2
    assert sorted(run.sample(B, step=0).example_id) == list(range(B))


def test_a_trainer_may_wait_for_scoring_that_is_behind(client: SelectionClient, run_id: str) -> None:
    run = ready(client, run_id)
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(run.sample, 2 * B, 0, wait_s=30.0)
        remember(run, 0)
        remember(run, 1)
        assert sorted(waits.result(30).example_id) == list(range(2 * B))
    with pytest.raises(BankShortError):
        run.sample(1, step=1, wait_s=0.05)
    with pytest.raises(ValueError, match="wait_s is -1; it must be 0 or above"):
        run.sample(1, step=1, wait_s=-1)


@pytest.mark.parametrize(
    ("bank", "complaint"),
    [
        (MemoryBank(0), "memory_bank.capacity is 0; choose from 1 to"),
        (MemoryBank(-5), "memory_bank.capacity is -5"),
        (MemoryBank(10, max_times_sampled=0), "memory_bank.max_times_sampled is 0; choose from 1 to"),
        (MemoryBank(10, max_times_sampled=-1), "memory_bank.max_times_sampled is -1"),
        (MemoryBank(10, max_staleness_steps=-1), "memory_bank.max_staleness_steps is -1; choose from 0 to"),
        (
            MemoryBank(2**40),
            f"memory_bank.capacity is {2**40}, up to {2**40 * ROW_BYTES} bytes, and memory_bank.max_bytes_per_run of "
            f"the service is {256 * 2**20}; choose at most {256 * 2**20 // ROW_BYTES}",
        ),
    ],
)
def test_a_bank_out_of_range_is_refused(client: SelectionClient, run_id: str, bank: MemoryBank, complaint: str) -> None:
    with pytest.raises(InvalidRunError, match=complaint):
        client.create_run(digits.spec(run_id, memory_bank=bank))
    assert run_id not in [status.spec.run_id for status in client.list_runs()]


def test_the_settings_of_a_bank_come_back_and_name_the_run(client: SelectionClient, run_id: str) -> None:
    for number, bank in enumerate((MemoryBank(7), MemoryBank(7, None, None), MemoryBank(7, 3, 0))):
        spec = digits.spec(f"{run_id}-{number}", memory_bank=bank)
        assert client.create_run(spec).status().spec == spec
        assert client.get_run(spec.run_id).spec.memory_bank == bank


def test_a_run_without_a_bank_has_none(run: Run, run_id: str, service_store: Store) -> None:
    with pytest.raises(BankOffError, match=rf"run '{run_id}' has no memory bank, .* memory_bank=MemoryBank\(capacity"):
        run.sample(1, step=0)
    with pytest.raises(BankOffError, match="has no memory bank"):
        remember(run, 0)
    assert not (service_store.path / "runs" / run_id / "bank").exists()


def test_a_super_batch_that_a_bank_cannot_keep_is_refused_and_changes_nothing(
    client: SelectionClient, run_id: str
) -> None:
    run, batch = ready(client, run_id, MemoryBank(B)), digits.candidates(0)
    twice = np.arange(B)
    twice[20] = 3
    for values in batch.values():
        values[20] = values[3]
    wrong: list[tuple[Any, str]] = [
        (twice, "example_id 3 is in rows 3 and 20; a bank keeps one score of each example"),
        (["x"] * B, "example_id 'x' is in rows 0 and 1"),
        (["x" * 200, *(str(i) for i in range(B - 1))], "row 0 has 200 bytes as UTF-8; a bank keeps texts of 1 to 128"),
        (None, "has no example_id, and a memory bank keeps scores by id; give example_id, one per candidate"),
    ]
    for ids, complaint in wrong:
        with pytest.raises(InvalidSuperBatchError, match=complaint):
            run.remember(batch, ids, step=0)
    with pytest.raises(InvalidSuperBatchError, match=f"has {B + 1} candidates, and the bank has room for {B}"):
        run.remember(digits.candidates(0, rows=B + 1), np.arange(B + 1), step=0)
    with pytest.raises(InvalidSuperBatchError, match="has columns"):
        run.remember({"image": batch["image"]}, np.arange(B), step=0)
    for step, rank in ((-1, 0), (0, -1), (0, 65_536)):
        with pytest.raises(InvalidSuperBatchError, match=f"step is {step} and rank is {rank}; steps start at 0"):
            run.remember(batch, np.arange(B), step=step, rank=rank)
        with pytest.raises(InvalidSuperBatchError, match=f"step is {step} and rank is {rank}; steps start at 0"):
            run.sample(1, step=step, rank=rank)
    for count in (0, -1, B + 1):
        with pytest.raises(
            InvalidSuperBatchError, match=f"sub_batch_size is {count}; choose from 1 to the {B} examples"
        ):
            run.sample(count, step=0)
    with pytest.raises(BankShortError, match="holds 0 examples"):
        run.sample(1, step=0)
    remember(run, 0)
    with pytest.raises(InvalidSuperBatchError, match="ids are whole numbers, and these are texts"):
        run.remember(digits.candidates(1), [str(i) for i in range(B)], step=1)
    assert sorted(run.sample(B, step=0).example_id) == list(range(B))


def test_an_id_that_was_given_to_another_example_is_refused_and_nothing_is_lost(
    client: SelectionClient, run_id: str
) -> None:
    run = ready(client, run_id, MemoryBank(2 * B))
    remember(run, 0)
    with pytest.raises(InvalidSuperBatchError) as caught:
        remember(run, 1, first=0)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert str(caught.value).startswith("example_id 0 in row 0 has other content than the example of that id in the ba")
    assert remember(run, 1).examples == 2 * B  # that step is free
    assert run.remember(digits.candidates(0), np.arange(B), step=2).examples == 2 * B  # refreshed
    assert sorted(run.sample(2 * B, step=0).example_id) == list(range(2 * B))
    assert remember(run, 3, first=0).examples == B  # what the bank no longer holds it does not know


def test_ids_that_are_null_are_refused(client: SelectionClient, raw: RawChannel, run_id: str) -> None:
    ready(client, run_id)
    batch = digits.candidates(0)
    encoded = batches.encode(batch, np.arange(B))
    table = pa.ipc.open_stream(encoded.body).read_all().combine_chunks().to_batches()[0]
    ids = pa.array([None, *range(1, B)], pa.int64())
    sink = pa.BufferOutputStream()
    holed = table.set_column(table.num_columns - 1, "example_id", ids)
    with pa.ipc.new_stream(sink, holed.schema) as writer:
        writer.write_batch(holed)
    status = raw.call("Remember", *remember_messages(run_id, sink.getvalue().to_pybytes())).status()
    assert (status.code, status.reason) == ("INVALID_ARGUMENT", "SUPER_BATCH_INVALID")
    assert "column 'example_id' has 1 nulls" in status.details


def remember_messages(run_id: str, body: bytes, **fields: Any) -> list[memory_bank_pb2.RememberRequest]:
    header = memory_bank_pb2.RememberHeader(
        **{"run_id": run_id, "step": 0, "row_count": B, "body_bytes": len(body), "digest": b"d", **fields}
    )
    return [
        memory_bank_pb2.RememberRequest(header=header),
        memory_bank_pb2.RememberRequest(chunk=selection_pb2.Chunk(offset=0, data=body)),
    ]


def test_messages_out_of_order_are_refused(client: SelectionClient, raw: RawChannel, run_id: str) -> None:
    ready(client, run_id)
    body = bytes(batches.encode(digits.candidates(0), np.arange(B)).body)
    header, piece = remember_messages(run_id, body)
    wrong: list[tuple[Any, str, str]] = [
        ([piece], "MESSAGE_INVALID", "does not start with RememberHeader"),
        ([header, header], "MESSAGE_INVALID", "something other than a Chunk"),
        ([b"\xff\xff"], "MESSAGE_INVALID", "the bytes are not a preceptor.v1.RememberRequest"),
        (remember_messages(run_id, body, digest=b""), "SUPER_BATCH_INVALID", "digest has 0 bytes; give 1 to 32"),
        (remember_messages(run_id, body, digest=b"x" * 33), "SUPER_BATCH_INVALID", "digest has 33 bytes"),
        (remember_messages(run_id, body, row_count=0), "SUPER_BATCH_INVALID", "the super-batch is empty"),
        (remember_messages(run_id, body, row_count=-3), "SUPER_BATCH_INVALID", "the super-batch is empty"),
        (remember_messages(run_id, body, row_count=8), "SUPER_BATCH_INVALID", "its header announced 8"),
        (remember_messages(run_id, body, body_bytes=-1), "MESSAGE_INVALID", "it cannot be negative"),
        (remember_messages(run_id, body, body_bytes=10**9), TooLargeError.reason, f"limit is {MAX_SUPER_BATCH_BYTES}"),
        (remember_messages("nobody-knows", body), "RUN_NOT_FOUND", "nobody-knows"),
    ]
    for messages, reason, details in wrong:
        call = raw.call("Remember", *messages)
        call.half_close()
        status = call.status()
        assert status.reason == reason, status
        assert details in status.details
    early = raw.call("Remember", header)
    early.half_close()
    assert "the stream ended too early" in early.status().details
    status = raw.call("SampleBank", memory_bank_pb2.SampleBankRequest(run_id="nobody-knows")).status()
    assert (status.code, status.reason) == ("NOT_FOUND", "RUN_NOT_FOUND")
    assert raw.call("SampleBank", b"\xff\xff").status().reason == "MESSAGE_INVALID"


def test_weights_that_are_missing_are_asked_for_and_nothing_is_remembered(client: SelectionClient, run_id: str) -> None:
    run = client.create_run(digits.spec(run_id, memory_bank=MemoryBank(100)))
    with pytest.raises(WeightsMissingError, match="has no learner weights"):
        remember(run, 0)
    run.push_reference(digits.weights(2))
    run.push_weights(digits.weights(1), step=0)
    assert remember(run, 0).examples == B


def test_candidates_without_a_finite_score_are_left_out_and_counted(
    client: SelectionClient, run_id: str, metrics: Metrics
) -> None:
    settings = {"score": "hard_learner", "model_config": digits.FLOAT_MODEL, "memory_bank": MemoryBank(100)}
    run = client.create_run(digits.spec(run_id, **settings))
    run.push_weights(digits.weights(1, digits.FLOAT_MODEL), step=0)
    batch = digits.float_candidates(1)
    batch["image"][3] *= np.float32(3e38)
    remembered = run.remember(batch, np.arange(B), step=0)
    assert (remembered.non_finite_count, remembered.examples) == (1, B - 1)
    assert not np.isfinite(remembered.scores[3])
    assert 3 not in run.sample(B - 1, step=0).example_id
    assert metrics.value("preceptor_non_finite_scores_total", run=run_id) == 1


def test_a_restarted_service_goes_on_identically(start: Callable[..., RunningService], tmp_path: Path) -> None:
    def act(run: Run, steps: range) -> list[Any]:
        answers: list[Any] = []
        for step in steps:
            answers.append(remember(run, step, first=step * 20).examples)
            answers.append(list(run.sample(8, step=step).example_id))
        return answers

    bank = MemoryBank(100, max_times_sampled=3)
    service = start(tmp_path / "whole")
    with SelectionClient(target_of(service)) as client:
        whole = act(ready(client, "kept", bank), range(12))
    service.stop()
    parts: list[Any] = []
    for life in range(3):
        service = start(tmp_path / "parts")
        with SelectionClient(target_of(service)) as client:
            run = ready(client, "kept", bank) if not life else client.get_run("kept")
            if life:  # the last answer may have been lost on its way
                assert list(run.sample(8, step=life * 4 - 1).example_id) == parts[-1]
            parts += act(run, range(life * 4, life * 4 + 4))
        service.stop()
    assert parts == whole


def test_two_gateways_have_one_bank(start: Callable[..., RunningService]) -> None:
    services = [start() for _ in range(2)]
    with SelectionClient(target_of(services[0])) as here, SelectionClient(target_of(services[1])) as there:
        runs = [ready(here, "shared"), there.get_run("shared")]

        def put(rank: int) -> None:
            for step in range(6):
                remember(runs[rank], step, rank * 1000 + step * B, rank)

        def drawn_by(rank: int, through: int) -> list[list[Any]]:
            return [list(runs[through].sample(16, step, rank).example_id) for step in range(8)]

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(put, range(2)))
            drawn = list(threads.map(drawn_by, range(2), range(2)))
        flat = [name for found in drawn for ids in found for name in ids]
        assert len(flat) == len(set(flat)) == 2 * 8 * 16
        assert [drawn_by(rank, 1 - rank) for rank in range(2)] == drawn
        assert runs[0].sample(1, 99).examples == 2 * 6 * B - 2 * 8 * 16 - 1


def test_one_step_asked_for_at_two_gateways_at_once_happens_once(start: Callable[..., RunningService]) -> None:
    services = [start() for _ in range(2)]
    with SelectionClient(target_of(services[0])) as here, SelectionClient(target_of(services[1])) as there:
        runs = [ready(here, "shared"), there.get_run("shared")]
        with ThreadPoolExecutor(4) as threads:
            for step in range(8):
                answers = list(threads.map(remember, runs * 2, [step] * 4))
                assert len({(answer.examples, answer.scores.tobytes()) for answer in answers}) == 1
                sampled = list(threads.map(Run.sample, runs * 2, [8] * 4, [step] * 4))
                assert len({(tuple(answer.example_id), answer.examples) for answer in sampled}) == 1
        assert runs[0].sample(1, 99).examples == 8 * B - 8 * 8 - 1


def test_a_full_disk_is_said_and_nothing_is_lost_or_done_by_half(
    start: Callable[..., RunningService], monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def full(source: Any, target: Any) -> None:
        if "/bank/" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        link(source, target)

    with SelectionClient(target_of(start())) as client:
        run = ready(client, "hungry")
        remember(run, 0)
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", full)
            with pytest.raises(DiskFullError, match="the store cannot write: No space left on device"):
                run.sample(8, step=0)
            with pytest.raises(DiskFullError):
                remember(run, 1)
            assert run.select(digits.candidates(1), 4, step=0).indices.shape == (4,)
        assert run.sample(8, step=0).examples == B - 8
        assert remember(run, 1).examples == 2 * B - 8


def test_a_store_that_fails_is_unavailable_and_the_repeat_succeeds(
    start: Callable[..., RunningService], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(storage: DirectoryStorage, name: str, content: bytes) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with SelectionClient(target_of(start())) as client:
        run = ready(client, "cut-off")
        remember(run, 0)
        with monkeypatch.context() as patch:
            patch.setattr(DirectoryStorage, "create", broken)
            with pytest.raises(UnavailableError, match="the store cannot be used: Input/output error; try again"):
                run.sample(8, step=0, timeout_s=2.0)
        assert run.sample(8, step=0).examples == B - 8


def test_a_store_that_hangs_holds_up_one_bank_until_the_deadline_and_selection_not_at_all(
    start: Callable[..., RunningService], monkeypatch: pytest.MonkeyPatch
) -> None:
    create, hangs, goes_on = DirectoryStorage.create, Event(), Event()

    def slow(storage: DirectoryStorage, name: str, content: bytes) -> bool:
        if "/stuck/bank/" in name:
            hangs.set()
            goes_on.wait(30)
        return create(storage, name, content)

    with SelectionClient(target_of(start())) as client:
        runs = [ready(client, run_id, deadline_s=0.5) for run_id in ("stuck", "other")]
        for run in runs:
            remember(run, 0)
        with monkeypatch.context() as patch:
            patch.setattr(DirectoryStorage, "create", slow)
            for step in range(2):
                with pytest.raises(DeadlineExceededError, match="did not answer for the bank of run 'stuck' in time"):
                    runs[0].sample(8, step=step)
            with pytest.raises(DeadlineExceededError):
                remember(runs[0], 1)
            assert hangs.is_set()
            assert runs[1].sample(8, step=0).examples == B - 8
            assert runs[0].select(digits.candidates(1), 4, step=0).indices.shape == (4,)
            goes_on.set()
        assert runs[0].sample(8, step=0).examples == B - 8  # it was done, once
        assert runs[0].sample(8, step=1).examples == B - 16
        assert remember(runs[0], 1).examples == 2 * B - 16


def test_a_super_batch_that_is_not_scored_in_time_is_not_remembered(
    client: SelectionClient, run_id: str, gate: Gate
) -> None:
    run = client.create_run(digits.gated_spec(run_id, deadline_s=0.3, memory_bank=MemoryBank(100)))
    run.push_weights(digits.gated_weights(1), step=0)
    gate.close()
    with pytest.raises(DeadlineExceededError):
        run.remember(digits.gated_candidates(1), np.arange(8), step=0)
    gate.open()
    with pytest.raises(BankShortError, match="holds 0 examples"):
        run.sample(1, step=0)
    assert run.remember(digits.gated_candidates(1), np.arange(8), step=0).examples == 8


def test_what_is_forgotten_is_said(start: Callable[..., RunningService]) -> None:
    with SelectionClient(target_of(start(memory_bank={"keep_operations": 3}))) as client:
        run = ready(client, "old", MemoryBank(100, max_times_sampled=None), score="uniform")
        for step in range(6):
            remember(run, step)
        with pytest.raises(StepForgottenError, match=r"step 1 of rank 0 may have been put in already, .* up to step 2"):
            remember(run, 1)
        assert remember(run, 3).evicted == 28


def test_banks_that_do_not_fit_into_memory_together_are_read_again(start: Callable[..., RunningService]) -> None:
    with SelectionClient(target_of(start(memory_bank={"max_bytes": 2000}))) as client:
        runs = [ready(client, f"many-{number}", score="uniform") for number in range(4)]
        for step in range(3):
            for run in runs:
                assert remember(run, step).examples == (step + 1) * B - step * 4
                assert run.sample(4, step=step).examples == (step + 1) * (B - 4)


def test_the_bank_goes_with_the_run(client: SelectionClient, run_id: str, service_store: Store) -> None:
    run = ready(client, run_id)
    remember(run, 0)
    folder = service_store.path / "runs" / run_id / "bank"
    assert len(list(folder.iterdir())) == 1
    client.delete_run(run_id)
    assert not folder.exists()
    with pytest.raises(RunNotFoundError):
        run.sample(1, step=0)
    anew = ready(client, run_id)
    with pytest.raises(BankShortError, match="holds 0 examples"):
        anew.sample(1, step=0)
    assert remember(anew, 0).examples == B


def test_selection_is_the_same_with_a_bank_and_without(client: SelectionClient, run_id: str) -> None:
    run = ready(client, run_id)
    for step in range(3):
        remember(run, step)
        run.sample(8, step=step)
        batch = digits.candidates(step)
        assert run.select(batch, 8, step=step).indices.tolist() == digits.expected(
            run.spec, batch, digits.weights(1), digits.weights(2), count=8, step=step
        )


def test_the_metrics_of_a_bank_tell_whether_scoring_runs_ahead(
    client: SelectionClient, run_id: str, metrics: Metrics
) -> None:
    def seen(name: str) -> float:
        return metrics.value(f"preceptor_bank_{name}", run=run_id)

    run = ready(client, run_id, MemoryBank(50))
    remember(run, 0)
    assert [seen(name) for name in ("sampled_examples_total", "evicted_examples_total", "short_samples_total")] == [
        0
    ] * 3
    remember(run, 1)
    for _ in range(2):  # a repeat counts once
        run.sample(8, step=0)
        remember(run, 1)
    assert seen("remembered_examples_total") == 2 * B
    assert seen("evicted_examples_total") == 14
    assert seen("sampled_examples_total") == 8
    assert seen("examples") == 42
    status = run.status()
    assert (status.candidates, status.selected, status.last_step) == (2 * B, 8, 0)
    assert status.cost is not None
    assert status.cost.ratio == 2 * B / 8
    per_candidate = status.cost.learner_copy_flops + status.cost.reference_flops
    assert metrics.value("preceptor_scoring_flops_total", run=run_id) == 2 * B * per_candidate
    client.delete_run(run_id)
    wait_until(lambda: run_id not in metrics.runs(), "its series end")


def replayed(run: Run, file: Path) -> list[Replayed]:
    run.export_ledger(file)
    return list(ReplayFile(file).replayed(MethodRegistry()))


@pytest.mark.parametrize("selector", ["softmax", "proportional", "top_k"])
def test_the_ledger_has_a_row_of_each_operation_and_replays_what_was_sampled(
    client: SelectionClient, run_id: str, tmp_path: Path, selector: str
) -> None:
    bank = MemoryBank(3 * B, max_times_sampled=2, max_staleness_steps=15)
    run = ready(client, run_id, bank, selector=selector, ledger=True, control_fraction=0.3, uniform_share=0.25)
    answers: list[Any] = []
    for step in range(8):
        answers += [remember(run, step, first=step * 20), run.sample(6, step=2 * step, rank=1)]
        run.select(digits.candidates(step), 8, step=step)
        for _ in range(2):  # repeats, which are no operations
            remember(run, step, first=step * 20)
            run.sample(6, step=2 * step, rank=1)
        if step % 3 == 2:
            run.push_weights(digits.weights(step), step=2 * step)
    rows = [row for row in run.ledger().to_pylist() if row["kind"] != "select"]
    assert [row["bank_operation"] for row in rows] == list(range(1, 17))
    assert [row["kind"] for row in rows] == ["remember", "sample"] * 8
    for row, answer in zip(rows, answers, strict=True):
        assert row["bank_examples"] == answer.examples
        assert np.array(row["scores"], np.float32).tobytes() == answer.scores.tobytes()
        assert (row["indices"], row["is_fallback"]) == (None, False)
    for step, (row, answer) in enumerate(zip(rows[::2], answers[::2], strict=True)):
        assert (row["step"], row["rank"], row["candidates"]) == (step, 0, B)
        assert row["example_id"] == (list(range(step * 20, step * 20 + B)))
        assert (row["learner_version"], row["learner_step"]) == (answer.learner_version, answer.learner_step)
        assert row["digest"] == batches.encode(from_pool(step * 20), np.arange(step * 20, step * 20 + B)).digest
        assert row["reference_digest"] == run.status().reference_digest
    for row, answer in zip(rows[1::2], answers[1::2], strict=True):
        assert row["example_id"] == answer.example_id.tolist()
        assert row["learner_versions"] == answer.learner_versions.tolist()
        assert row["learner_steps"] == (answer.step - answer.staleness_steps).tolist()
        assert row["weights"] == (None if answer.weights is None else answer.weights.tolist())
        assert (row["step"], row["rank"]) == (answer.step, 1)
        assert row["candidates"] >= 6
    found = replayed(run, tmp_path / "ledger.parquet")
    assert len(found) == 24
    assert all(one.is_known and one.difference is None for one in found)


def test_texts_and_scores_without_a_learner_stand_in_the_ledger_too(
    client: SelectionClient, run_id: str, tmp_path: Path
) -> None:
    run = client.create_run(digits.spec(run_id, score="easy_reference", ledger=True, memory_bank=MemoryBank(B)))
    run.push_reference(digits.weights(2))
    texts = [f"bild-{i}.jpg" for i in range(B)]
    run.remember(digits.candidates(1), texts, step=0)
    sampled = run.sample(5, step=0)
    put, drawn = run.ledger().to_pylist()
    assert (put["example_id"], put["example_id_text"]) == (None, texts)
    assert (put["learner_version"], put["learner_step"]) == (None, None)
    assert (drawn["example_id_text"], drawn["candidates"]) == (sampled.example_id, B)
    assert (drawn["learner_versions"], drawn["learner_steps"]) == (None, None)
    assert [one.difference for one in replayed(run, tmp_path / "ledger.parquet")] == [None, None]


def test_what_was_done_while_nobody_waited_any_more_stands_in_the_ledger(
    client: SelectionClient, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ready(client, run_id, ledger=True, deadline_s=0.3)
    remember(run, 0)
    create, go_on = DirectoryStorage.create, Event()

    def late(self: DirectoryStorage, path: str, content: bytes) -> bool:
        if path.endswith(".operation"):
            go_on.wait(30)
        return create(self, path, content)

    monkeypatch.setattr(DirectoryStorage, "create", late)
    with pytest.raises(DeadlineExceededError):
        run.sample(4, step=0, timeout_s=1.0)
    go_on.set()
    wait_until(lambda: run.ledger()["kind"].to_pylist() == ["remember", "sample"], "it is done, and written down")
    sampled = run.sample(4, step=0)
    run.sample(4, step=1)
    assert run.ledger()["example_id"].to_pylist()[1] == sampled.example_id.tolist()
    assert [one.difference for one in replayed(run, tmp_path / "ledger.parquet")] == [None] * 3


def test_samples_of_steps_that_are_held_back_say_so_and_are_counted(
    client: SelectionClient, run_id: str, metrics: Metrics
) -> None:
    bank = MemoryBank(1000, max_times_sampled=None)
    run = ready(client, run_id, bank, selector="top_k", control_fraction=0.5, seed=1)
    remember(run, 0)
    held = []
    for step in range(24):
        sampled = run.sample(2, step=step)
        assert run.sample(2, step=step).is_control == sampled.is_control == is_held_back(run.spec, step)
        held.append(sampled.is_control)
    assert 0 < sum(held) < 24
    assert run.status().control_super_batches == sum(held)
    assert metrics.value("preceptor_control_super_batches_total", run=run_id) == sum(held)


def test_a_long_run_writes_snapshots_in_the_background(start: Callable[..., RunningService], tmp_path: Path) -> None:
    service = start()
    with SelectionClient(target_of(service)) as client:
        run = ready(client, "long", MemoryBank(100, max_times_sampled=None), score="uniform")
        remember(run, 0)
        for step in range(130):
            run.sample(2, step=step)
        folder = tmp_path / "store" / "runs" / "long" / "bank"
        wait_until(lambda: bool(list(folder.glob("*.snapshot"))), "a snapshot is written")
    assert metrics_of(service).value("preceptor_bank_sampled_examples_total", run="long") == 260
