"""Gateways that push, read, collect and vanish in any order, on a real store, beside a plain model of it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from preceptor.errors import PreceptorError, WeightsNotFoundError
from preceptor_service.run_store import RunStore
from preceptor_service.weight_store import WeightStore
from tests.stores import DirectoryPlace
from tests.weight_store.model import VersionsModel
from tests.weight_store.pushing import create_run, push, store_with_runs

_KEEP = 2
_GRACE_S = 60.0
_RUNS = st.sampled_from(("run", "other"))


class StoreMachine(RuleBasedStateMachine):
    """Two runs that may hold the same weights, in a directory."""

    checked: ClassVar[int] = 0
    """Outcomes that were compared."""

    @initialize()
    def open_new(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._root = Path(self._folder.name)
        self._store = store_with_runs(self._root, _KEEP, grace_s=_GRACE_S)
        self._models = {run_id: VersionsModel(_KEEP) for run_id in ("run", "other")}
        self._pinned: dict[tuple[str, str], bytes] = {}

    @rule(run_id=_RUNS, content=st.integers(1, 4), step=st.integers(0, 3), rewind=st.booleans(), late=st.booleans())
    def push(self, run_id: str, content: int, step: int, rewind: bool, late: bool) -> None:
        model = self._models[run_id]
        base = max(0, model.newest - 1) if late else model.newest
        wanted = model.push(content, step, rewind, base)
        found: int | str
        try:
            pushed = push(self._store, _bytes(content), step=step, base=base, run_id=run_id, rewind=rewind)
            found = pushed.version
        except PreceptorError as error:
            found = error.code
        self._agree(found, wanted)

    @rule(content=st.integers(1, 4), sealed=st.booleans())
    def vanish_inside_a_push(self, content: int, sealed: bool) -> None:
        """As a gateway that is killed: nobody removes what it had staged."""
        data = _bytes(content)
        staged = self._store.stage(len(data) + (not sealed))
        staged.write(data)
        staged._file.close()  # and not `staged`, which would remove it
        self.reopen()

    @rule()
    def reopen(self) -> None:
        self._store = WeightStore(self._root, _KEEP, 1000, _GRACE_S)

    @rule(run_id=_RUNS)
    def pin(self, run_id: str) -> None:
        """A super-batch begins on the newest version, and needs it until it is answered: for less than the grace."""
        head = self._store.head(run_id, "learner")
        if head is not None:
            self._pinned[run_id, head.digest] = self._store.verify(head.digest).read_bytes()

    @rule()
    def collect(self) -> None:
        self._store.collect()
        for (_, digest), content in self._pinned.items():
            self._agree(self._store.verify(digest).read_bytes(), content)

    @rule()
    def collect_much_later(self) -> None:
        """Whatever was pinned is answered by then."""
        self._pinned.clear()
        DirectoryPlace(self._root).age(2 * _GRACE_S)
        self._store.collect()
        named = {_bytes(held) for model in self._models.values() for _, _, held in model.kept}
        blobs = {path.read_bytes() for path in (self._root / "blobs").iterdir()}
        self._agree(blobs, named)

    @rule(run_id=_RUNS)
    def delete_and_create(self, run_id: str) -> None:
        """The super-batches of a run end with it."""
        self._pinned = {pin: content for pin, content in self._pinned.items() if pin[0] != run_id}
        RunStore(self._root).delete(run_id)
        self._store.delete_run(run_id)
        create_run(self._root, run_id)
        self._models[run_id] = VersionsModel(_KEEP)

    @invariant()
    def the_store_holds_what_was_acknowledged(self) -> None:
        for run_id, model in self._models.items():
            found = [
                (version.version, version.step, self._store.blob_path(version.digest).read_bytes())
                for version in self._store.versions(run_id, "learner")
            ]
            self._agree(found, [(version, step, _bytes(held)) for version, step, held in model.kept])
            expired = model.newest - _KEEP
            if expired > 0:
                try:
                    self._store.version(run_id, "learner", expired)
                except WeightsNotFoundError:
                    continue
                raise AssertionError(f"version {expired} expired, and is served")

    def teardown(self) -> None:
        self._folder.cleanup()

    def _agree(self, found: object, wanted: object) -> None:
        assert found == wanted
        type(self).checked += 1


def _bytes(content: int) -> bytes:
    return b"weights %d" % content
