"""SelectingLoader: exactly b rows in the form of the batch, one super-batch ahead, resumable to the step."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from preceptor import CoTraining, Run, RunSpec, SelectionClient
from preceptor.errors import DeadlineExceededError, InvalidSuperBatchError
from preceptor.torch import SelectingLoader
from preceptor.v1 import selection_pb2
from tests.client.fake_service import FakeService, Received, Stream

B, SUB = 8, 3
from_zero = partial(SelectingLoader, start_step=0)
"""A loader that counts from 0 even where another one was used on the same run before."""
Pair = namedtuple("Pair", ["image", "label"])


def draw(stream: Stream, received: Received) -> None:
    """Selects by content, step and rank, in an order that is not sorted."""
    header = received.header
    drawn = np.random.default_rng([header.step, header.rank, *received.header.digest])
    indices = drawn.permutation(header.row_count)[: header.sub_batch_size]
    stream.give_credit(len(received.body))
    stream.outbox.put(
        selection_pb2.SelectResponse(
            selection=selection_pb2.Selection(
                step=header.step, rank=header.rank, indices=indices.astype("<i8").tobytes()
            )
        )
    )


def has_received(service: FakeService, count: int) -> bool:
    return len(service.received) == count


def images(first: int, rows: int = B) -> torch.Tensor:
    return torch.arange(first * 2, (first + rows) * 2, dtype=torch.float32).reshape(rows, 2)


def labels(first: int, rows: int = B) -> torch.Tensor:
    return torch.arange(first, first + rows)


def pairs(count: int = 5, last_rows: int = B) -> list[tuple[torch.Tensor, torch.Tensor]]:
    sizes = [B] * (count - 1) + [last_rows]
    return [(images(k * B, rows), labels(k * B, rows)) for k, rows in enumerate(sizes)]


def fail_the_first(stream: Stream, received: Received) -> None:
    """Refuses one super-batch; those behind it, and it when it is offered again, are drawn from."""
    stream.service.on_super_batch = draw
    stream.fail(received, "INVALID_ARGUMENT", "SUPER_BATCH_INVALID", "label 99 is outside of 10 classes")


def drawn_labels(loader: SelectingLoader) -> list[list[int]]:
    return [label.tolist() for _, label in loader]


@pytest.fixture(autouse=True)
def drawing(service: FakeService) -> None:
    service.on_super_batch = draw


def test_every_batch_becomes_its_selected_rows_in_the_order_drawn(run: Run) -> None:
    batches = pairs(4)
    loader = from_zero(batches, run, SUB, start_step=10)
    steps = []
    for (image, label), (whole_image, whole_label) in zip(loader, batches, strict=True):
        selection = loader.last_selection
        assert selection is not None
        expected = [int(position) for position in selection.indices]
        assert len(expected) == SUB
        assert label.tolist() == [int(whole_label[position]) for position in expected]
        assert image.tolist() == [whole_image[position].tolist() for position in expected]
        steps.append(selection.step)
        assert loader.step == selection.step + 1
    assert steps == [10, 11, 12, 13]
    assert len(loader) == 4


FORMS: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], Any], type]] = {
    "tuple": (lambda image, label: (image, label), tuple),
    "list": (lambda image, label: [image, label], list),
    "named tuple": (Pair, Pair),
    "mapping": (lambda image, label: {"label": label, "image": image}, dict),
    "tuple with more than the run's columns": (lambda image, label: (image, label, label * 10), tuple),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_sub_batch_has_the_form_of_its_batch(service: FakeService, run: Run, form: str) -> None:
    make, expected_type = FORMS[form]
    batch: Any
    [batch] = from_zero([make(images(0), labels(0))], run, SUB)
    assert type(batch).__name__ == expected_type.__name__
    image, label = (batch["image"], batch["label"]) if expected_type is dict else batch[:2]
    assert image.equal(images(0)[label])
    assert label.shape == (SUB,)
    if len(batch) == 3:
        assert batch[2].equal(label * 10)
    [received] = service.received
    assert pa.ipc.open_stream(received.body).read_all().column_names == ["image", "label"]


def test_one_tensor_per_batch_is_the_runs_only_column(service: FakeService, run: Run) -> None:
    run.columns = ("image",)
    [batch] = from_zero([images(0)], run, SUB)
    assert isinstance(batch, torch.Tensor)
    assert batch.shape == (SUB, 2)
    assert pa.ipc.open_stream(service.received[0].body).read_all().column_names == ["image"]


def test_further_keys_are_carried_along_and_only_example_ids_are_sent(service: FakeService, run: Run) -> None:
    batch = {
        "image": images(0),
        "label": labels(0),
        "example_id": [f"e{row}" for row in range(B)],
        "weight": np.arange(B) / 10,
        "mask": torch.arange(B) % 2 == 0,
        "source": "web",
    }
    [sub_batch] = from_zero([batch], run, SUB)
    rows = sub_batch["label"].tolist()
    assert sub_batch["example_id"] == [f"e{row}" for row in rows]
    assert sub_batch["weight"].tolist() == [row / 10 for row in rows]
    assert sub_batch["mask"].tolist() == [row % 2 == 0 for row in rows]
    assert sub_batch["source"] == "web"
    sent = pa.ipc.open_stream(service.received[0].body).read_all()
    assert sent.column_names == ["image", "label", "example_id"]
    assert sent.column("example_id").to_pylist() == batch["example_id"]


def test_names_say_which_tensor_of_a_tuple_is_which(service: FakeService, run: Run) -> None:
    ids = torch.arange(100, 100 + B)
    names = ("example_id", "label", "image")
    [(example_id, label, _)] = from_zero([(ids, labels(0), images(0))], run, SUB, names=names)
    assert example_id.equal(label + 100)
    assert pa.ipc.open_stream(service.received[0].body).read_all().column_names == ["label", "image", "example_id"]


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_so_many_super_batches_are_offered_ahead_before_a_sub_batch_is_handed_out(
    service: FakeService, run: Run, prefetch: int
) -> None:
    fetched: list[int] = []

    def loader() -> Iterator[Any]:
        for k, batch in enumerate(pairs(6)):
            fetched.append(k)
            yield batch

    for k, _ in enumerate(from_zero(loader(), run, SUB, prefetch=prefetch)):
        assert len(fetched) == min(6, k + 1 + prefetch)
    service.wait_for("all arrived", lambda: len(service.received) == 6)


def test_prefetching_changes_nothing_that_is_yielded(service: FakeService, run: Run) -> None:
    ahead = [drawn_labels(from_zero(pairs(), run, SUB, prefetch=prefetch)) for prefetch in (0, 1, 4)]
    assert ahead[0] == ahead[1] == ahead[2]
    assert len({tuple(labels) for labels in ahead[0]}) == 5


def test_the_exposed_wait_adds_up(run: Run) -> None:
    loader = from_zero(pairs(), run, SUB)
    waits = [loader.exposed_wait_s for _ in loader]
    assert all(wait > 0 for wait in waits)
    assert loader.total_exposed_wait_s == pytest.approx(sum(waits))


@pytest.mark.parametrize(("last_rows", "yielded", "skipped"), [(SUB - 1, 4, 1), (SUB, 5, 0), (B - 1, 5, 0)])
def test_a_short_last_super_batch_is_skipped_and_takes_no_step(
    run: Run, last_rows: int, yielded: int, skipped: int
) -> None:
    loader = from_zero(pairs(5, last_rows), run, SUB)
    for epoch in (1, 2):
        rows = [len(label) for _, label in loader]
        assert rows == [SUB] * yielded
        assert loader.step == epoch * yielded
        assert loader.skipped_super_batches == epoch * skipped


def test_steps_go_on_over_epochs(service: FakeService, run: Run) -> None:
    loader = from_zero(pairs(3), run, SUB, rank=2)
    for _ in range(2):
        list(loader)
    assert [received.key for received in service.received] == [(step, 2) for step in range(6)]


def test_a_loader_made_anew_for_each_epoch_goes_on_counting_for_its_rank(service: FakeService, run: Run) -> None:
    for _ in range(2):
        list(SelectingLoader(pairs(3), run, SUB))
    list(SelectingLoader(pairs(1), run, SUB, rank=1))
    assert [received.key for received in service.received] == [*((step, 0) for step in range(6)), (0, 1)]
    assert (run.next_step(), run.next_step(rank=1), run.next_step(rank=2)) == (6, 1, 0)


class Images(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __len__(self) -> int:
        return 5 * B

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        return images(row, 1)[0], torch.tensor(row)


class Shard(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Every second example, as a rank of two would read them."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return ((images(row, 1)[0], torch.tensor(row)) for row in range(self.rank, 5 * B, 2))


def test_loaders_made_beforehand_take_turns_on_one_rank(service: FakeService, run: Run) -> None:
    first, second = SelectingLoader(pairs(3), run, SUB), SelectingLoader(pairs(2), run, SUB)
    assert (first.step, second.step) == (0, 0)
    for loader in (first, second, first, second):
        list(loader)
        assert first.step == second.step == run.next_step()
    assert [received.key for received in service.received] == [(step, 0) for step in range(10)]


def test_loaders_of_one_rank_may_be_read_side_by_side(service: FakeService, run: Run) -> None:
    first, second = SelectingLoader(pairs(4), run, SUB), SelectingLoader(pairs(4), run, SUB)
    assert len(list(zip(first, second, strict=True))) == 4
    service.wait_for("all arrived", partial(has_received, service, 8))
    assert sorted(received.key for received in service.received) == [(step, 0) for step in range(8)]


@pytest.mark.parametrize(
    ("last_step", "learner_step", "start"), [(41, None, 42), (41, 30, 42), (None, 30, 30), (3, 30, 30), (None, None, 0)]
)
def test_a_training_script_that_is_run_again_goes_on_counting(
    service: FakeService, client: SelectionClient, last_step: int | None, learner_step: int | None, start: int
) -> None:
    service.last_step, service.learner_step = last_step, learner_step
    run = client.create_run(RunSpec("digits", "small_cnn"))
    loader = SelectingLoader(pairs(2), run, SUB)
    # What is pushed before the first sub-batch needs a step that is not older than what was pushed before.
    assert loader.step == start
    assert loader.state_dict()["step"] == start
    list(loader)
    assert [received.key for received in service.received] == [(start, 0), (start + 1, 0)]
    assert service.calls["GetRun"] == 0


def test_a_cell_that_is_run_again_goes_on_behind_what_others_did_meanwhile(
    service: FakeService, client: SelectionClient
) -> None:
    list(SelectingLoader(pairs(2), client.create_run(RunSpec("digits", "small_cnn")), SUB))
    service.last_step = 9
    list(SelectingLoader(pairs(2), client.create_run(RunSpec("digits", "small_cnn")), SUB))
    assert [received.header.step for received in service.received] == [0, 1, 10, 11]


def test_a_loaded_state_counts_from_its_step_whatever_the_service_answered(
    service: FakeService, client: SelectionClient
) -> None:
    service.last_step = 9
    loader = SelectingLoader(pairs(3), client.create_run(RunSpec("digits", "small_cnn")), SUB)
    loader.load_state_dict({"step": 4, "batches_yielded_in_epoch": 1})
    assert loader.step == 4
    list(loader)
    assert [received.header.step for received in service.received] == [4, 5]


def test_an_epoch_of_super_batches_that_are_all_too_short_is_refused(run: Run) -> None:
    loader = from_zero(pairs(3, last_rows=2), run, B + 1)
    with pytest.raises(
        ValueError, match=r"all 3 super-batches .* at most 8 rows .* sub_batch_size is 9; .*(larger|lower)"
    ):
        list(loader)
    assert loader.skipped_super_batches == 3


@pytest.mark.parametrize("make", [pairs, lambda count, last_rows: StatefulLoader(count, last_rows)])
def test_an_epoch_resumed_at_its_short_end_is_over(run: Run, make: Callable[[int, int], Any]) -> None:
    before = from_zero(make(3, 1), run, SUB, prefetch=0)
    for _ in before:
        if before.step == 2:
            break
    after = from_zero(make(3, 1), run, SUB)
    after.load_state_dict(before.state_dict())
    assert list(after) == []
    assert len(list(after)) == 2


@pytest.mark.parametrize("make", [iter, lambda batches: (batch for batch in batches)], ids=["iterator", "generator"])
def test_an_exhausted_iterator_is_refused(run: Run, make: Callable[[Any], Any]) -> None:
    loader = from_zero(make(pairs(3)), run, SUB)
    assert len(list(loader)) == 3
    with pytest.raises(ValueError, match="wrapped loader is an iterator and is exhausted; give something that can be"):
        list(loader)


def test_an_iterator_resumed_at_its_end_is_over(run: Run) -> None:
    loader = from_zero(iter(pairs(2)), run, SUB)
    loader.load_state_dict({"step": 2, "batches_yielded_in_epoch": 2})
    assert list(loader) == []


def test_an_empty_loader_yields_nothing(run: Run) -> None:
    assert list(from_zero([], run, SUB)) == []


def test_a_shuffled_data_loader_and_its_selection_repeat_with_the_seed(run: Run) -> None:
    def epoch() -> list[list[int]]:
        shuffled = DataLoader(Images(), B, shuffle=True, generator=torch.Generator().manual_seed(3))
        return drawn_labels(from_zero(shuffled, run, SUB))

    first = epoch()
    assert first == epoch()
    assert [len(set(rows)) for rows in first] == [SUB] * 5


def test_ranks_with_iterable_data_get_equal_counts_of_their_own_examples(service: FakeService, run: Run) -> None:
    for rank in range(2):
        loader = from_zero(DataLoader(Shard(rank), B), run, SUB, rank=rank)
        epoch = drawn_labels(loader)
        assert [len(rows) for rows in epoch] == [SUB] * 3
        assert all(row % 2 == rank for rows in epoch for row in rows)
        with pytest.raises(TypeError, match="no length"):
            len(from_zero(iter(pairs()), run, SUB))
    assert {received.key for received in service.received} == {(step, rank) for step in range(3) for rank in range(2)}


class StatefulLoader:
    """As torchdata's: its state names the next batch, which runs ahead of what was yielded when prefetching."""

    def __init__(self, count: int, last_rows: int = B) -> None:
        self.batches = pairs(count, last_rows)
        self.next = 0
        self.fetched = 0

    def __iter__(self) -> Iterator[Any]:
        while self.next < len(self.batches):
            self.next += 1
            self.fetched += 1
            yield self.batches[self.next - 1]
        self.next = 0

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


@pytest.mark.parametrize("make", [pairs, StatefulLoader], ids=["plain", "stateful"])
@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("stop_after", [1, 4, 5, 6, 10])
def test_a_resumed_loader_yields_what_the_uninterrupted_one_would_have(
    run: Run, make: Callable[[int], Any], prefetch: int, stop_after: int
) -> None:
    uninterrupted = from_zero(make(5), run, SUB, prefetch=prefetch)
    expected = [rows for _ in range(3) for rows in drawn_labels(uninterrupted)]

    before = from_zero(make(5), run, SUB, prefetch=prefetch)
    seen: list[list[int]] = []
    state: dict[str, Any] = {}
    while not state:
        for _, label in before:
            seen.append(label.tolist())
            if len(seen) == stop_after:
                state = before.state_dict()
                break
    assert before.state_dict() == state

    after = from_zero(make(5), run, SUB, prefetch=prefetch)
    after.load_state_dict(state)
    assert after.state_dict() == state
    while len(seen) < 15:
        seen.extend(drawn_labels(after))

    assert seen == expected
    assert after.step == 15


@pytest.mark.parametrize("make", [pairs, StatefulLoader], ids=["plain", "stateful"])
@pytest.mark.parametrize("fails_first", [False, True], ids=["asked for two iterators", "the first selection failed"])
def test_a_resumed_loader_that_is_iterated_twice_goes_on_at_the_same_place(
    service: FakeService, run: Run, make: Callable[[int], Any], fails_first: bool
) -> None:
    expected = drawn_labels(from_zero(make(6), run, SUB))
    state = {"step": 2, "batches_yielded_in_epoch": 2, "loader": {"next": 2}}
    loader = from_zero(make(6), run, SUB)
    loader.load_state_dict(state)

    first = iter(loader)
    if fails_first:
        service.on_super_batch = fail_the_first
        with pytest.raises(InvalidSuperBatchError):
            next(first)
    second = iter(loader)
    assert [next(second)[1].tolist() for _ in range(2)] == expected[2:4]
    saved = loader.state_dict()
    rest = list(loader)  # something was yielded, so this is a new epoch
    assert make is StatefulLoader or len(rest) == 6
    again = from_zero(make(6), run, SUB)
    again.load_state_dict(saved)
    assert drawn_labels(again) == expected[4:]


def test_waiting_for_an_answer_that_never_comes_has_an_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preceptor.client.GRACE_S", 0.1)
    monkeypatch.setattr(run, "submit", lambda *_: Future())
    with pytest.raises(DeadlineExceededError, match=r"no selection for step 0, rank 0 within 0\.1 s, nor a reason"):
        list(from_zero(pairs(), run, SUB, timeout_s=0.1))


def test_waiting_for_what_an_epoch_left_behind_has_an_end(
    client: SelectionClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preceptor.torch.GRACE_S", 0.1)
    run = client.create_run(RunSpec("taught", "small_cnn", co_training=CoTraining()))
    loader = from_zero(pairs(), run, SUB, timeout_s=0.1)
    iterator = iter(loader)
    next(iterator)
    monkeypatch.setattr(loader, "_left_behind", [Future()])
    with pytest.raises(DeadlineExceededError, match=r"1 super-batches of the epoch before had no answer within 0\.1 s"):
        next(iterator)


def test_a_stateful_loader_is_not_asked_for_what_was_consumed(run: Run) -> None:
    before = from_zero(StatefulLoader(5), run, SUB)
    for _ in before:
        if before.step == 2:
            break
    inner = StatefulLoader(5)
    after = from_zero(inner, run, SUB)
    after.load_state_dict(before.state_dict())
    assert len(list(after)) == 3
    assert inner.fetched == 3


def test_state_between_epochs_starts_the_next_epoch(run: Run) -> None:
    before = from_zero(pairs(), run, SUB)
    list(before)
    assert before.state_dict() == {"step": 5, "batches_yielded_in_epoch": 0}
    after = from_zero(pairs(), run, SUB)
    after.load_state_dict(before.state_dict())
    assert drawn_labels(after) == drawn_labels(before)


def test_leaving_an_epoch_early_never_reuses_a_step_for_other_candidates(service: FakeService, run: Run) -> None:
    offered: dict[tuple[int, int], bytes] = {}
    epochs = iter([pairs(5), list(reversed(pairs(5))), pairs(5)])

    class Shuffled:
        def __iter__(self) -> Iterator[Any]:
            return iter(next(epochs))

    loader = from_zero(Shuffled(), run, SUB)
    for epoch in (1, 2, 3):
        for taken, _ in enumerate(loader):
            if taken == 1:
                # Two were taken and a third was offered ahead; leaving gives it up.
                service.wait_for("all offered arrived", partial(has_received, service, epoch * 3))
                break
    for received in service.received:
        assert offered.setdefault(received.key, received.header.digest) == received.header.digest
    assert sorted(offered) == [(step, 0) for step in range(9)]


def test_an_error_in_the_training_step_leaves_nothing_behind(service: FakeService, run: Run) -> None:
    loader = from_zero(pairs(), run, SUB)

    def train_badly() -> None:
        for _ in loader:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train_badly()
    resumed = drawn_labels_after(loader)
    assert len(resumed) == 4
    assert loader.step == 5


def drawn_labels_after(loader: SelectingLoader) -> list[list[int]]:
    loader.load_state_dict(loader.state_dict())
    return drawn_labels(loader)


@pytest.mark.parametrize("make", [pairs, StatefulLoader], ids=["plain", "stateful"])
@pytest.mark.parametrize("refused_step", [0, 2])
def test_a_failed_selection_is_raised_and_the_epoch_can_be_resumed(
    service: FakeService, run: Run, make: Callable[[int], Any], refused_step: int
) -> None:
    def refuse_one_step(stream: Stream, received: Received) -> None:
        if received.header.step == refused_step:
            stream.fail(received, "INVALID_ARGUMENT", "SUPER_BATCH_INVALID", "label 99 is outside of 10 classes")
        else:
            draw(stream, received)

    expected = drawn_labels(from_zero(make(5), run, SUB))
    service.on_super_batch = refuse_one_step
    loader = from_zero(make(5), run, SUB)
    seen: list[list[int]] = []
    with pytest.raises(InvalidSuperBatchError, match="label 99"):
        seen.extend(label.tolist() for _, label in loader)
    assert seen == expected[:refused_step]
    service.on_super_batch = draw
    assert seen + drawn_labels_after(loader) == expected


def test_a_new_iteration_ends_the_old_one(run: Run) -> None:
    loader = from_zero(pairs(), run, SUB)
    old = iter(loader)
    next(old)
    assert len(list(loader)) == 5
    with pytest.raises(RuntimeError, match="iterated anew"):
        next(old)


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ({"image": images(0)}, ValueError, r"lacks \['label'\]"),
        ((images(0),), ValueError, r"lacks \['label'\]"),
        ((images(0), labels(0, 7)), ValueError, r"shapes \[\(8, 2\), \(7,\)\]"),
        ((images(0), torch.tensor(1)), ValueError, r"shapes \[\(8, 2\), \(\)\]"),
        ("text", TypeError, "a batch is a str"),
        (np.zeros(3), TypeError, "a batch is a ndarray"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(run: Run, batch: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list(from_zero([batch], run, SUB))


@pytest.mark.parametrize(
    ("argument", "value"), [("sub_batch_size", 0), ("start_step", -1), ("rank", -1), ("prefetch", -1)]
)
def test_numbers_out_of_range_are_refused(run: Run, argument: str, value: int) -> None:
    arguments: dict[str, Any] = {"sub_batch_size": SUB, argument: value}
    with pytest.raises(ValueError, match=f"{argument} is {value}; it must be"):
        from_zero([], run, **arguments)
