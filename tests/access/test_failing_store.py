"""A store that fails or hangs while callers are known: their rights are those that it told of last."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from preceptor_service.gateway import guard
from tests.access import calls
from tests.access.conftest import Guarded
from tests.access.test_open_streams import select
from tests.service import digits
from tests.service.conftest import wait_until
from tests.service.raw import super_batch

RECHECKS = 5


@pytest.fixture
def guarded(start_guarded: Callable[..., Guarded]) -> Guarded:
    return start_guarded()


@pytest.fixture
def opened(guarded: Guarded) -> Iterator[grpc.Channel]:
    with calls.channel(guarded.target) as opened:
        yield opened


class FailingRecords:
    """Reads of run records that fail, or wait until the test ends."""

    def __init__(self) -> None:
        self.reads = 0
        self.may_end = threading.Event()

    def fail(self, path: Path) -> bytes:
        self.reads += 1
        raise OSError(errno.EIO, "Input/output error", str(path))

    def hang(self, path: Path) -> bytes:
        self.reads += 1
        assert self.may_end.wait(60)
        raise OSError(errno.EIO, "Input/output error", str(path))


@pytest.fixture
def records() -> Iterator[FailingRecords]:
    records = FailingRecords()
    yield records
    records.may_end.set()


@pytest.mark.parametrize("how", ["fail", "hang"])
def test_streams_stay_open_and_known_callers_open_others(
    guarded: Guarded,
    opened: grpc.Channel,
    run_id: str,
    records: FailingRecords,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    stream = select(guarded, opened, guarded.token("owner"), run_id)
    read, read_bytes = getattr(records, how), Path.read_bytes
    monkeypatch.setattr(guard, "_STORE_S", 0.2)
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) if path.name == "run.json" else read_bytes(path))
    wait_until(lambda: records.reads >= RECHECKS, "rights were checked again and again")
    stream.send(*super_batch(digits.candidates(2), step=2))
    assert stream.answer() == "selection"
    another = select(guarded, opened, guarded.token("scorer"), run_id)
    another.cancel()
    bearer = calls.bearer(guarded.token("stranger"))
    assert calls.answer(opened, "Select", run_id, bearer).code == "PERMISSION_DENIED"
    assert calls.answer(opened, "Select", "never-heard-of", calls.bearer(guarded.token("owner"))).code == "UNAVAILABLE"
    stream.cancel()
