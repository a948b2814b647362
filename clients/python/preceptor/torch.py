"""`SelectingLoader`: super-batches in, sub-batches worth training on out, selected while the trainer trains.

It has no thread: super-batch k + 1 is on its way to the service before sub-batch k is handed out, and the client's own
threads carry it while the trainer computes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from preceptor.answers import Selection
from preceptor.batches import EXAMPLE_ID
from preceptor.client import GRACE_S, Run, result_of
from preceptor.errors import DeadlineExceededError


@runtime_checkable
class _Stateful(Protocol):
    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> None: ...


@dataclass(frozen=True)
class _Offered:
    """One super-batch whose selection is under way."""

    batch: Any
    rows: int
    step: int
    future: Future[Selection]
    loader_state: Any


class SelectingLoader:
    """Wraps a loader of super-batches and yields sub-batches of exactly `sub_batch_size` rows, in the same form.

    A batch is a mapping of name → tensor, a tuple or list of tensors, or one tensor. In a mapping the run's columns are
    sent, and the key `example_id` as the example ids; further keys are not sent. Tuples and lists are named by `names`.
    Whatever was not sent is carried along: tensors, arrays and lists are indexed like the rest, other values pass
    unchanged. Rows come in the order drawn.

    Steps: the i-th sub-batch of all epochs has step `start_step + i`. A super-batch with fewer rows than
    `sub_batch_size` (the short end of a data set) is skipped and takes no step. Leaving an epoch early gives up what
    was offered ahead and also its steps: the next epoch starts at a step that was never offered, unless
    `load_state_dict` says otherwise. Of a co-trained run, whose online model needs every step, what was offered ahead
    is not given up but left unused, and the next epoch waits until it is answered.

    Without `start_step`, and until a state is loaded, steps are those that `run.next_step(rank)` gives while iterating:
    several loaders of one rank take turns, a loader made anew for each epoch goes on counting, and so does a script or
    a notebook cell that is run again from its `create_run`. The service tells only the highest step of all ranks, and
    only of the gateway asked, since it started. With several ranks, make every rank's `Run` before the first of them
    iterates, or give `start_step`: else a late rank starts above the steps of the early ones.

    Resuming: `state_dict` tells what was yielded. With the same data in the same order, the loader that loads it yields
    what the first one would have; super-batches that were offered but not yielded are fetched and offered again. A
    wrapped loader that has `state_dict` and `load_state_dict` is resumed by them, any other by skipping.

    Worker processes of a wrapped `DataLoader` read data and never select. Forked ones, the default on Linux before
    Python 3.14, start with a copy of the trainer's gRPC, which then may log `skipping fork() handlers` and, rarely, end
    the worker: seen where clients were opened and closed while workers were forked. `persistent_workers=True` forks
    once; `multiprocessing_context="forkserver"` forks another process than the trainer.

    For one trainer thread. One process per rank, each with its own client and its own shard of the data. Ranks whose
    loaders yield the same row counts get the same number of sub-batches; ranks with unequal shards do not, and nothing
    here evens that out: collective operations of the trainer, such as DDP's gradients, then wait for ever. Make shards
    equal, as `DistributedSampler` does for map-style data; for iterable data drop what does not divide by the ranks, or
    stop every rank at the count of the smallest shard, e.g. with `itertools.islice`.

    Args:
        loader: any iterable of super-batches, e.g. a `DataLoader` over a map-style or iterable data set. An iterator or
            generator lasts for one epoch.
        run: the run.
        sub_batch_size: examples to train on per step, b.
        start_step: step of the first sub-batch; default: `run.next_step(rank)` at that time.
        rank: the trainer's rank.
        prefetch: super-batches offered ahead of the one whose sub-batch is awaited; 0: none, 1: double-buffered.
        names: names of the tensors of a tuple or list, in order, `"example_id"` among them; default: the run's columns.
            Tensors beyond the names are carried along.
        timeout_s: for each selection; default: the client's.

    Raises:
        ValueError: a number is out of range; while iterating: a batch lacks a column, or its tensors differ in rows; at
            the end of an epoch: all super-batches were skipped, or the wrapped loader is an exhausted iterator.
        TypeError: while iterating: a batch has another form.
        PreceptorError: while iterating: as `Run.select`.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        run: Run,
        sub_batch_size: int,
        *,
        start_step: int | None = None,
        rank: int = 0,
        prefetch: int = 1,
        names: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        for name, value, least in (
            ("sub_batch_size", sub_batch_size, 1),
            ("start_step", start_step, 0),
            ("rank", rank, 0),
            ("prefetch", prefetch, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be {least} or above")
        self.loader = loader
        self._run = run
        self._sub_batch_size = sub_batch_size
        self._rank = rank
        self._prefetch = prefetch
        self._names = tuple(run.columns if names is None else names)
        self._timeout_s = timeout_s
        self._takes_free_steps = start_step is None
        self._step = self._first_unused_step = start_step or 0
        self._is_between_epochs = True
        self._batches_yielded_in_epoch = 0
        self._resumes = False
        self._loader_state: Any = None
        self._offered: deque[_Offered] = deque()
        self._left_behind: list[Future[Selection]] = []
        self._epoch: object = None
        self._last_selection: Selection | None = None
        self._exposed_wait_s = 0.0
        self._total_exposed_wait_s = 0.0
        self._skipped_super_batches = 0

    @property
    def step(self) -> int:
        """Step of the next sub-batch; after leaving an epoch early, of the next one if that epoch were resumed."""
        return self._free_step(self._step) if self._is_between_epochs else self._step

    @property
    def last_selection(self) -> Selection | None:
        """The selection behind the sub-batch that was yielded last."""
        return self._last_selection

    @property
    def exposed_wait_s(self) -> float:
        """Seconds that selection held up the last step: encoding, handing over, and waiting for the answer."""
        return self._exposed_wait_s

    @property
    def total_exposed_wait_s(self) -> float:
        """Sum of `exposed_wait_s` over all steps."""
        return self._total_exposed_wait_s

    @property
    def skipped_super_batches(self) -> int:
        """Super-batches that had fewer rows than `sub_batch_size`."""
        return self._skipped_super_batches

    def __len__(self) -> int:
        """Super-batches of one epoch; sub-batches where none is skipped. `TypeError` where the loader has no length."""
        if not isinstance(self.loader, Sized):
            raise TypeError(f"the wrapped {type(self.loader).__name__} has no length")
        return len(self.loader)

    def state_dict(self) -> dict[str, Any]:
        """Returns what was yielded so far, the current sub-batch included; save it with the learner's checkpoint."""
        state: dict[str, Any] = {"step": self.step, "batches_yielded_in_epoch": self._batches_yielded_in_epoch}
        if isinstance(self.loader, _Stateful):
            is_between_epochs = self._loader_state is None
            state["loader"] = self._state_of_loader() if is_between_epochs else self._loader_state
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the next iteration go on behind the sub-batch at which `state` was taken.

        Raises:
            KeyError: `state` is not from `state_dict` of such a loader.
        """
        self._abandon()
        self._takes_free_steps = False
        self._step = self._first_unused_step = state["step"]
        self._batches_yielded_in_epoch = state["batches_yielded_in_epoch"]
        self._loader_state = None
        if isinstance(self.loader, _Stateful):
            self.loader.load_state_dict(state["loader"])
            self._loader_state = state["loader"]
        self._resumes = True

    def __iter__(self) -> Iterator[Any]:
        """Starts an epoch, or goes on with the one whose state was loaded; ends any other iteration.

        Goes on with it anew where the iteration before yielded nothing of it.
        """
        self._abandon()
        if not self._resumes:
            self._batches_yielded_in_epoch = 0
            self._loader_state = self._state_of_loader()
            self._step = self._free_step(self._first_unused_step)
        self._is_between_epochs = False
        self._epoch = epoch = object()
        return self._iterate(epoch)

    def _iterate(self, epoch: object) -> Iterator[Any]:
        super_batches = self._super_batches()
        try:
            while True:
                if self._epoch is not epoch:
                    raise RuntimeError(
                        "this iteration is over: the SelectingLoader was iterated anew, or was given another state"
                    )
                waited_s = self._offer_ahead(super_batches)
                if not self._offered:
                    break
                offered = self._offered[0]
                started = time.perf_counter()
                selection = result_of(offered.future, offered.step, self._rank, self._limit_s)
                waited_s += time.perf_counter() - started
                self._offered.popleft()
                sub_batch = _take(offered.batch, offered.rows, selection.indices)
                self._note(offered, selection, waited_s)
                yield sub_batch
            self._batches_yielded_in_epoch = 0
            self._loader_state = None
            self._is_between_epochs = True
            self._resumes = False
        finally:
            if self._epoch is epoch:
                self._abandon()

    def _super_batches(self) -> Iterator[tuple[Any, int]]:
        """Yields (super-batch, rows) of those that have rows enough and were not consumed before the resume."""
        consumed_before = self._batches_yielded_in_epoch
        to_skip = 0 if isinstance(self.loader, _Stateful) else consumed_before
        if self._resumes and isinstance(self.loader, _Stateful):
            # An iteration that yielded nothing may have fetched from it since the state was loaded.
            self.loader.load_state_dict(self._loader_state)
        seen = skipped = most_rows = 0
        iterator = iter(self.loader)
        for batch in iterator:
            rows = _row_count(batch)
            seen, most_rows = seen + 1, max(most_rows, rows)
            if rows < self._sub_batch_size:
                skipped += 1
                self._skipped_super_batches += 1
            elif to_skip:
                to_skip -= 1
            else:
                yield batch, rows
        if consumed_before:
            return
        if iterator is self.loader and not seen:
            raise ValueError(
                "the wrapped loader is an iterator and is exhausted; give something that can be iterated again, "
                "such as a list, a DataLoader, or an object whose __iter__ starts anew"
            )
        if seen and skipped == seen:
            raise ValueError(
                f"all {seen} super-batches of this epoch have at most {most_rows} rows and were skipped, for "
                f"sub_batch_size is {self._sub_batch_size}; make super-batches larger, or lower sub_batch_size"
            )

    def _offer_ahead(self, super_batches: Iterator[tuple[Any, int]]) -> float:
        """Offers super-batches until `prefetch` lie behind the one awaited; returns the seconds that this took here."""
        spent_s = 0.0
        if self._left_behind:
            unsettled = wait(self._left_behind, self._limit_s + GRACE_S).not_done
            if unsettled:
                raise DeadlineExceededError(
                    f"{len(unsettled)} super-batches of the epoch before had no answer within {self._limit_s:g} s, "
                    "nor a reason"
                )
            self._left_behind.clear()
        while len(self._offered) <= self._prefetch:
            following = next(super_batches, None)
            if following is None:
                break
            batch, rows = following
            loader_state = self._state_of_loader()
            started = time.perf_counter()
            columns, example_id = self._columns(batch)
            step = self._free_step(self._offered[-1].step + 1 if self._offered else self._step)
            future = self._run.submit(columns, self._sub_batch_size, step, self._rank, example_id, self._timeout_s)
            spent_s += time.perf_counter() - started
            self._offered.append(_Offered(batch, rows, step, future, loader_state))
            self._first_unused_step = max(self._first_unused_step, step + 1)
        return spent_s

    @property
    def _limit_s(self) -> float:
        return self._run.timeout_s if self._timeout_s is None else self._timeout_s

    def _free_step(self, step: int) -> int:
        """Returns `step`, or a later one where other loaders of this rank have used it."""
        return max(step, self._run.next_step(self._rank)) if self._takes_free_steps else step

    def _columns(self, batch: Any) -> tuple[dict[str, Any], Any]:
        """Returns what is sent of a batch: columns by name, and example ids or None."""
        if isinstance(batch, Mapping):
            named, needed = batch, self._run.columns
        else:
            values = [batch] if isinstance(batch, torch.Tensor) else list(batch)
            named, needed = dict(zip(self._names, values, strict=False)), self._names
        lacking = [name for name in needed if name not in named]
        if lacking:
            raise ValueError(
                f"a batch lacks {lacking}; it gives {list(named)}, and the run's columns are {list(self._run.columns)}"
            )
        return {name: named[name] for name in needed if name != EXAMPLE_ID}, named.get(EXAMPLE_ID)

    def _note(self, offered: _Offered, selection: Selection, waited_s: float) -> None:
        self._last_selection = selection
        self._exposed_wait_s = waited_s
        self._total_exposed_wait_s += waited_s
        self._step = offered.step + 1
        self._batches_yielded_in_epoch += 1
        self._loader_state = offered.loader_state
        self._resumes = False

    def _abandon(self) -> None:
        self._epoch = None
        while self._offered:
            future = self._offered.popleft().future
            if self._run.spec.co_training is None:
                future.cancel()
            else:
                self._left_behind.append(future)

    def _state_of_loader(self) -> Any:
        return self.loader.state_dict() if isinstance(self.loader, _Stateful) else None


def forward_flops(model: torch.nn.Module, *inputs: torch.Tensor) -> float:
    """Counts the floating-point operations of one forward pass of `model` per example, for `RunSpec.learner_flops`.

    Runs `model(*inputs)` once, in evaluation mode and without gradients; a multiplication and an addition are two.

    Args:
        model: your learner; its mode is as before afterwards.
        inputs: what it takes, each `[N, ...]`.

    Raises:
        ValueError: there are no inputs, or the first has no rows.
    """
    rows = len(inputs[0]) if inputs and inputs[0].dim() else 0
    if not rows:
        raise ValueError("give the inputs of at least one example, each with rows first: [N, ...]")
    was_training = model.training
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(*inputs)
    finally:
        model.train(was_training)
    return float(counter.get_total_flops() / rows)


def _row_count(batch: Any) -> int:
    values: Iterable[Any]
    if isinstance(batch, torch.Tensor):
        values = [batch]
    elif isinstance(batch, Mapping):
        values = batch.values()
    elif isinstance(batch, tuple | list):
        values = batch
    else:
        raise TypeError(f"a batch is a {type(batch).__name__}; give a mapping, tuple or list of tensors, or a tensor")
    shapes = [tuple(value.shape) for value in values if isinstance(value, torch.Tensor | np.ndarray)]
    rows = {shape[:1] for shape in shapes}
    if len(rows) != 1 or () in rows:
        raise ValueError(f"the tensors of a batch have shapes {shapes}; each needs one row per candidate: [B, ...]")
    return int(shapes[0][0])


def _take(value: Any, rows: int, indices: NDArray[np.int64]) -> Any:
    """Returns the rows `indices` of whatever a batch holds, in its form."""
    if isinstance(value, torch.Tensor):
        return value[torch.from_numpy(indices).to(value.device)]
    if isinstance(value, np.ndarray):
        return value[indices]
    if isinstance(value, Mapping):
        return {name: _take_column(item, rows, indices) for name, item in value.items()}
    items = [_take_column(item, rows, indices) for item in value]
    if isinstance(value, list):
        return items
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def _take_column(value: Any, rows: int, indices: NDArray[np.int64]) -> Any:
    if isinstance(value, torch.Tensor | np.ndarray):
        return _take(value, rows, indices)
    if isinstance(value, list | tuple) and len(value) == rows:
        return [value[position] for position in indices]
    return value
