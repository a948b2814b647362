"""A trainer that does anything in any order, against a real gateway, beside a plain model of what must come of it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from preceptor import Run, SelectionClient
from preceptor.errors import PreceptorError
from preceptor_service.config import WeightsConfig
from tests.service import digits
from tests.service.raw import RawCall, RawChannel, chunk, header, select_open, super_batch
from tests.weight_store.model import VersionsModel

_names = itertools.count(1)

SuperBatchKey = tuple[int, int, int, int]
"""Step, rank, seed of the candidates, and how many of them to select."""

_SUPER_BATCHES = st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 2), st.sampled_from((1, 4, 40)))


@dataclass
class _Stream:
    call: RawCall
    observed: int


class StreamMachine(RuleBasedStateMachine):
    """One run, up to two streams of it, and whatever else trainers do."""

    target: ClassVar[str]
    checked: ClassVar[int] = 0
    """Answers that were compared."""

    def __init__(self) -> None:
        super().__init__()
        self._client = SelectionClient(self.target, timeout_s=30.0)
        self._channel = RawChannel(self.target)
        self._streams: list[_Stream] = []
        self._name = f"machine-{next(_names)}"

    @initialize()
    def create(self) -> None:
        self._run: Run = self._client.create_run(digits.spec(self._name, seed=5))
        self._learner = VersionsModel(WeightsConfig().keep_versions)
        self._reference: int | None = None
        self._answers: dict[tuple[int, int], tuple[tuple[int, int], list[int], int]] = {}

    @precondition(lambda self: len(self._streams) < 2)
    @rule(knows=st.booleans())
    def connect(self, knows: bool) -> None:
        observed = self._learner.newest if knows else 0
        call = self._channel.call("Select", select_open(self._name, observed))
        assert call.receive().WhichOneof("kind") == "opened"
        self._streams.append(_Stream(call, observed))

    @precondition(lambda self: self._streams)
    @rule(which=st.integers(0, 1), offered=st.lists(_SUPER_BATCHES, min_size=1, max_size=3))
    def select(self, which: int, offered: list[SuperBatchKey]) -> None:
        stream = self._streams[which % len(self._streams)]
        for step, rank, seed, size in offered:
            stream.call.send(*super_batch(digits.candidates(seed), step=step, rank=rank, sub_batch_size=size))
        for step, rank, seed, size in offered:
            answer = stream.call.answer()
            found = answer.failure.code if answer.WhichOneof("kind") == "failure" else _indices(answer.selection)
            wanted, version = self._expected(stream, step, rank, seed, size)
            self._agree(found, wanted)
            if isinstance(wanted, list):
                self._agree(answer.selection.learner_version, version)
                stream.observed = max(stream.observed, version)

    @precondition(lambda self: self._streams)
    @rule(which=st.integers(0, 1), order=st.sampled_from(("chunk", "open", "header twice")))
    def break_the_order(self, which: int, order: str) -> None:
        stream = self._streams.pop(which % len(self._streams))
        announced = super_batch(digits.candidates(0))[0]
        broken = {"chunk": [chunk(b"x")], "open": [select_open(self._name)], "header twice": [announced, announced]}
        stream.call.send(*broken[order])
        self._agree(stream.call.status().code, "INVALID_ARGUMENT")

    @precondition(lambda self: self._streams)
    @rule(which=st.integers(0, 1), inside=st.booleans())
    def vanish(self, which: int, inside: bool) -> None:
        stream = self._streams.pop(which % len(self._streams))
        if inside:
            stream.call.send(header(bytes(100), step=9), chunk(bytes(50)))
        stream.call.cancel()

    @precondition(lambda self: self._streams)
    @rule(which=st.integers(0, 1))
    def finish(self, which: int) -> None:
        stream = self._streams.pop(which % len(self._streams))
        stream.call.half_close()
        self._agree(stream.call.status().code, "OK")

    @rule(seed=st.integers(1, 3), step=st.integers(0, 3), rewind=st.booleans())
    def push(self, seed: int, step: int, rewind: bool) -> None:
        wanted = self._learner.push(seed, step, rewind)
        self._agree(_outcome(lambda: self._run.push_weights(digits.weights(seed), step=step, rewind=rewind)), wanted)

    @rule(seed=st.integers(7, 8))
    def push_reference(self, seed: int) -> None:
        wanted: int | str = 1 if self._reference in (None, seed) else "ALREADY_EXISTS"
        self._reference = self._reference or seed
        self._agree(_outcome(lambda: self._run.push_reference(digits.weights(seed))), wanted)

    @rule()
    def delete_and_create(self) -> None:
        self._client.delete_run(self._name)
        for stream in self._streams:
            self._agree(stream.call.status().code, "NOT_FOUND")
        self._streams.clear()
        self._agree(self._channel.call("Select", select_open(self._name)).status().code, "NOT_FOUND")
        self.create()

    def teardown(self) -> None:
        for stream in self._streams:
            stream.call.cancel()
        self._client.delete_run(self._name)
        self._channel.__exit__()
        self._client.close()

    def _expected(self, stream: _Stream, step: int, rank: int, seed: int, size: int) -> tuple[list[int] | str, int]:
        """The indices or the status code, and the learner version."""
        known = self._answers.get((step, rank))
        if known is not None and known[0] != (seed, size):
            return "ALREADY_EXISTS", 0
        if known is not None and known[2] >= stream.observed:
            return known[1], known[2]
        if not self._learner.newest or self._reference is None:
            return "FAILED_PRECONDITION", 0
        batch = digits.candidates(seed)
        if size > len(batch["label"]):
            return "INVALID_ARGUMENT", 0
        learner, reference = digits.weights(self._learner.content), digits.weights(self._reference)
        indices = digits.expected(self._run.spec, batch, learner, reference, count=size, step=step, rank=rank)
        self._answers[step, rank] = ((seed, size), indices, self._learner.newest)
        return indices, self._learner.newest

    def _agree(self, found: object, wanted: object) -> None:
        assert found == wanted
        type(self).checked += 1


def _indices(selection: Any) -> list[int]:
    return [int.from_bytes(selection.indices[at : at + 8], "little") for at in range(0, len(selection.indices), 8)]


def _outcome(push: Any) -> int | str:
    try:
        return int(push().version)
    except PreceptorError as error:
        return error.code
