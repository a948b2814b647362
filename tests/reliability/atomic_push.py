"""Proof `atomic-push`: a process dies at every durable step of a push; what the store holds then, and goes on with.

Each round is a process of its own that pushes to three runs, repeats weights, goes back, collects, and dies at one
failpoint: killed, or by a power failure that takes what was not synced (`page_cache`). The store is then opened anew
and compared with what the process had announced and been answered.
"""

from __future__ import annotations

import logging
import os
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from rich.progress import track

from benchmarks.results import Figure
from benchmarks.suite import Measured
from preceptor.errors import InternalError, PreceptorError, WeightsNotFoundError
from preceptor_service.failpoints import FAILPOINTS, Failpoint
from preceptor_service.weight_collection import UPLOAD_GRACE_S
from preceptor_service.weight_store import WeightStore
from preceptor_service.weight_versions import ROLES, Role
from tests.reliability.pusher import KEEP_VERSIONS, RUNS, Push, Pushers, Task, commit, open_store, pushers
from tests.stores import DirectoryPlace, ObjectPlace, Place

SEEDS, SHORT_SEEDS = 100, 1
OBJECT_SEEDS = 5
SHORT_OBJECT_POINTS: tuple[Failpoint, ...] = ("object-sent", "object-created", "object-copied")
_MOST_PASSES = 3
_KILLED = -9

Death = Literal["kill", "power failure"]
Fault = Literal["torn", "lost", "left behind", "refused afterwards"]

_ONLY_IN_DIRECTORIES: frozenset[Failpoint] = frozenset(
    {
        *("blob-linked", "blob-named", "blob-durable", "versions-made", "versions-durable"),
        *("manifest-synced", "manifest-named", "manifest-durable"),
    }
)


@dataclass
class Outcome:
    """What one round, or several, came to.

    Attributes:
        rounds: how many.
        deaths: of them, those in which the process died where it should.
        faults: what the store did wrong, and what it was.
    """

    rounds: int = 0
    deaths: int = 0
    answered: int = 0
    faults: Counter[Fault] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)

    def add(self, fault: Fault, text: str) -> None:
        """Notes a fault."""
        self.faults[fault] += 1
        self.told.append(f"{fault}: {text}")

    def __iadd__(self, other: Outcome) -> Outcome:
        self.rounds += other.rounds
        self.deaths += other.deaths
        self.answered += other.answered
        self.faults += other.faults
        self.told += other.told
        return self


def points_of(place: Literal["directory", "object store"]) -> tuple[Failpoint, ...]:
    """Returns the failpoints that a push to such a store comes by."""
    if place == "directory":
        return tuple(point for point in FAILPOINTS if not point.startswith("object-"))
    return tuple(point for point in FAILPOINTS if point not in _ONLY_IN_DIRECTORIES)


def run(short: bool) -> Measured:
    """Returns the figures, and deaths and faults of each failpoint."""
    seeds = range(SHORT_SEEDS if short else SEEDS)
    outcomes: dict[str, Outcome] = defaultdict(Outcome)
    with pushers() as processes:
        for death in get_args(Death):
            for point, seed in _each(points_of("directory"), seeds, f"directory, {death}"):
                outcomes[f"{point}, {death}"] += in_directory(processes, point, seed, death)
    points = SHORT_OBJECT_POINTS if short else points_of("object store")
    for point, outcome in in_object_store(points, range(1 if short else OBJECT_SEEDS)):
        outcomes[f"{point}, object store"] += outcome
    total = sum_of(outcomes.values())
    figures = [
        Figure("processes that died where they should", total.deaths, "", limit=total.rounds, sense="at least"),
        Figure("failpoints", len(FAILPOINTS), ""),
        Figure("pushes answered before", total.answered, ""),
        Figure("torn versions", total.faults["torn"], "", limit=0),
        Figure("answered, then lost", total.faults["lost"], "", limit=0),
        Figure("stores with leftovers that are not collected", total.faults["left behind"], "", limit=0),
        Figure("stores that take no push afterwards", total.faults["refused afterwards"], "", limit=0),
    ]
    raw = {name: {"rounds": one.rounds, "deaths": one.deaths, **one.faults} for name, one in outcomes.items()}
    return figures, {"by failpoint": raw, "faults": total.told[:100]}


def sum_of(outcomes: Iterable[Outcome]) -> Outcome:
    """Returns all of them as one."""
    total = Outcome()
    for outcome in outcomes:
        total += outcome
    return total


def in_directory(
    processes: Pushers, point: Failpoint, seed: int, death: Death = "kill", bug: str | None = None
) -> Outcome:
    """Runs one round in a directory, of a service that has `bug`."""
    with tempfile.TemporaryDirectory(prefix="preceptor-proof-") as folder:
        store, limbo = Path(folder) / "store", Path(folder) / "limbo"
        store.mkdir()
        limbo.mkdir()
        return _round(processes, DirectoryPlace(store), point, seed, limbo if death == "power failure" else None, bug)


def in_object_store(points: Sequence[Failpoint], seeds: Sequence[int]) -> Iterator[tuple[Failpoint, Outcome]]:
    """Runs rounds in an object store, with a server and programs of their own."""
    from tests.s3_server import S3Server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with S3Server() as server, _environment(server.environment), pushers() as processes:
        for point, seed in _each(points, seeds, "object store, kill"):
            with tempfile.TemporaryDirectory(prefix="preceptor-proof-") as folder:
                yield point, _round(processes, ObjectPlace(server, Path(folder)), point, seed)


def _each(points: Sequence[Failpoint], seeds: Sequence[int], title: str) -> Iterator[tuple[Failpoint, int]]:
    """Yields every pair, with a line that tells how far it is."""
    yield from track([(point, seed) for point in points for seed in seeds], title)


def _round(
    processes: Pushers, place: Place, point: Failpoint, seed: int, limbo: Path | None = None, bug: str | None = None
) -> Outcome:
    passes = random.Random(f"passes {seed}").randrange(_MOST_PASSES)
    task = Task(place.settings.model_dump_json(), point, passes, seed, str(limbo) if limbo else None, bug)
    said, ended = processes.run(task)
    outcome = Outcome(rounds=1, deaths=int(ended == _KILLED))
    if ended not in (0, _KILLED):
        raise RuntimeError(f"{point}, seed {seed}: the pushing process failed by itself, with exit status {ended}")
    answered, interrupted = _history(said)
    outcome.answered = sum(len(pushes) for pushes in answered.values())
    _Examination(place, answered, interrupted, outcome, f"{point}, seed {seed}").examine()
    return outcome


History = Mapping[tuple[str, Role], Mapping[int, Push]]


def _history(said: list[dict[str, Any]]) -> tuple[History, Push | None]:
    """Returns what was answered, by version, and the push that was not."""
    answered: dict[tuple[str, Role], dict[int, Push]] = {(run_id, role): {} for run_id in RUNS for role in ROLES[:2]}
    interrupted = None
    for message in said:
        if "pushing" in message:
            interrupted = Push(**message["pushing"])
        elif interrupted is not None:
            answered[interrupted.run_id, interrupted.role][message["committed"]] = interrupted
            interrupted = None
    return answered, interrupted


class _Examination:
    """A store after a death, compared with what was said before."""

    def __init__(self, place: Place, answered: History, interrupted: Push | None, outcome: Outcome, title: str) -> None:
        self._place = place
        self._answered = answered
        self._interrupted = interrupted
        self._outcome = outcome
        self._title = title
        self._store = open_store(place.open())

    def examine(self) -> None:
        """Looks at every run, collects, looks again, and pushes."""
        self._look()
        self._collect()
        self._look()
        self._go_on()

    def _look(self) -> None:
        for (run_id, role), pushes in self._answered.items():
            self._look_at(run_id, role, pushes)

    def _look_at(self, run_id: str, role: Role, pushes: Mapping[int, Push]) -> None:
        interrupted = self._interrupted
        is_open = interrupted is not None and (interrupted.run_id, interrupted.role) == (run_id, role)
        newest = max(pushes, default=0)
        try:
            head = self._store.head(run_id, role)
            kept = self._store.versions(run_id, role)
        except PreceptorError as error:
            self._fault("torn", f"{run_id} {role}: {error}")
            return
        found = head.version if head else 0
        if found < newest or len(kept) < min(newest, KEEP_VERSIONS):
            self._fault("lost", f"{run_id} {role} is at {found} and keeps {len(kept)}; version {newest} was answered")
        if found > newest + is_open:
            self._fault("torn", f"{run_id} {role} is at {found}, which nobody pushed")
        for version in kept:
            push = pushes.get(version.version) or (interrupted if is_open else None)
            if push is None or push.digest != version.digest:
                self._fault("torn", f"{run_id} {role} {version.version} is not what was pushed as that")
                continue
            try:
                content = self._store.verify(version.digest).read_bytes()
            except (InternalError, WeightsNotFoundError) as error:
                self._fault("torn", f"{run_id} {role} {version.version}: {error}")
                continue
            if content != push.data:
                self._fault("torn", f"{run_id} {role} {version.version} has another content")

    def _collect(self) -> None:
        self._place.age(2 * UPLOAD_GRACE_S)
        self._store = open_store(self._place.open())
        self._store.collect()
        staging = [*self._place.names("staging"), *(path.name for path in self._place.open().staging.iterdir())]
        named = {
            version.digest.removeprefix("sha256:")
            for run_id, role in self._answered
            for version in self._store.versions(run_id, role)
        }
        left = [*(name for name in staging if name != "clock"), *(set(self._place.names("blobs")) - named)]
        if left:
            self._fault("left behind", ", ".join(left))

    def _go_on(self) -> None:
        """Repeats the push that was not answered, as the client does, and pushes once more to each run."""
        try:
            if self._interrupted is not None:
                commit(self._store, self._interrupted)
            for run_id in RUNS:
                self._push_next(self._store, run_id)
        except PreceptorError as error:
            self._fault("refused afterwards", str(error))

    def _push_next(self, store: WeightStore, run_id: str) -> None:
        head = store.head(run_id, "learner")
        before, step = (head.version, head.step) if head else (0, 0)
        version = commit(store, Push(run_id, "learner", step + 1, content=-1))
        if version != before + 1:
            self._fault("refused afterwards", f"{run_id} went from version {before} to {version}")

    def _fault(self, fault: Fault, text: str) -> None:
        self._outcome.add(fault, f"{self._title}: {text}")


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
