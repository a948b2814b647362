"""A directory that hangs, as a file system over a network does: super-batches go on with what is known."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from preceptor import SelectionClient
from preceptor.errors import PreceptorError
from preceptor_service import runs
from preceptor_service.app import RunningService
from tests.service import digits
from tests.service.conftest import target_of, wait_until

LOOKS = 50
"""More than there are threads for what blocks."""


class Hanging:
    """Reads of records that wait until the test ends, once the directory hangs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._read = Path.read_bytes
        self.hangs = False
        self.waiting = 0
        self.may_go_on = threading.Event()
        monkeypatch.setattr(Path, "read_bytes", lambda path: self._read_bytes(path))

    def _read_bytes(self, path: Path) -> bytes:
        if self.hangs and path.name == "run.json":
            self.waiting += 1
            assert self.may_go_on.wait(60)
        return self._read(path)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    hanging = Hanging(monkeypatch)
    yield hanging
    hanging.may_go_on.set()


@pytest.fixture
def client(start: Callable[..., RunningService], monkeypatch: pytest.MonkeyPatch) -> Iterator[SelectionClient]:
    monkeypatch.setattr(runs, "_REFRESH_S", 0.0)
    monkeypatch.setattr(runs, "_REFRESH_TIMEOUT_S", 0.1)
    with SelectionClient(target_of(start()), timeout_s=20.0) as client:
        yield client


def test_selection_goes_on_and_only_one_thread_waits(client: SelectionClient, hanging: Hanging) -> None:
    run = client.create_run(digits.spec("steady", score="hard_learner"))
    learner = digits.weights(1)
    run.push_weights(learner, step=0)
    hanging.hangs = True
    for step in range(LOOKS):
        batch = digits.candidates(step)
        assert run.select(batch, 4, step=step).indices.tolist() == digits.expected(
            run.spec, batch, learner, learner, count=4, step=step
        )
    assert hanging.waiting == 1
    hanging.hangs = False
    hanging.may_go_on.set()
    assert run.push_weights(digits.weights(2), step=LOOKS).version == 2
    wait_until(lambda: run.select(batch, 4, step=LOOKS).learner_version == 2, "the store is followed again")


@pytest.mark.parametrize("on_deadline", ["raise", "uniform"])
def test_what_the_store_must_tell_is_waited_for_until_the_deadline(
    start: Callable[..., RunningService], client: SelectionClient, hanging: Hanging, on_deadline: str
) -> None:
    spec = digits.spec("cold", score="hard_learner", deadline_s=1.0, on_deadline=on_deadline)
    pushed_to = client.create_run(spec)
    with SelectionClient(target_of(start()), timeout_s=20.0) as another:
        run = another.get_run("cold")
        pushed_to.push_weights(digits.weights(1), step=0)
        hanging.hangs = True
        submitted = run.submit(digits.candidates(1), 4, step=1)
        if on_deadline == "uniform":
            assert submitted.result(20.0).is_fallback
        else:
            with pytest.raises(PreceptorError, match="told no learner version within 1 s"):
                submitted.result(20.0)
        hanging.hangs = False
        hanging.may_go_on.set()
        assert run.select(digits.candidates(2), 4, step=2).learner_version == 1
