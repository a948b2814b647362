"""The proof `atomic-push` in seconds, and that it sees what it is there to see."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from preceptor_service.failpoints import FAILPOINTS, Failpoint
from tests.reliability.atomic_push import (
    SHORT_OBJECT_POINTS,
    Death,
    Fault,
    Outcome,
    in_directory,
    in_object_store,
    points_of,
    sum_of,
)
from tests.reliability.push_bugs import PUSH_BUGS
from tests.reliability.pusher import Pushers, pushers

LATE: tuple[Failpoint, ...] = ("manifest-named", "version-expired", "blob-set-aside", "blob-removed")
"""Where enough was answered before to be lost."""


@pytest.fixture(scope="module")
def processes() -> Iterator[Pushers]:
    with pushers() as processes:
        yield processes


def assert_kept(outcome: Outcome) -> None:
    assert outcome.told == []
    assert outcome.deaths == outcome.rounds > 0


@pytest.mark.parametrize("death", ["kill", "power failure"])
def test_a_push_that_dies_anywhere_leaves_the_old_version_or_all_of_the_new_one(
    processes: Pushers, death: Death
) -> None:
    assert_kept(sum_of(in_directory(processes, point, 0, death) for point in points_of("directory")))


@pytest.mark.slow
def test_so_it_is_in_an_object_store(s3_server: object) -> None:
    assert_kept(sum_of(outcome for _, outcome in in_object_store(SHORT_OBJECT_POINTS, [0])))


def test_every_failpoint_is_one_of_a_directory_or_of_an_object_store() -> None:
    assert set(points_of("directory")) | set(points_of("object store")) == set(FAILPOINTS)


CAUGHT: dict[str, tuple[Death, Fault]] = {
    "publish before fsync": ("power failure", "torn"),
    "leave names to chance": ("power failure", "lost"),
    "name weights before they are there": ("kill", "torn"),
    "write manifests in place": ("kill", "torn"),
    "collect what is named": ("kill", "torn"),
}


@pytest.mark.parametrize("bug", PUSH_BUGS)
def test_a_service_with_a_bug_does_not_pass(processes: Pushers, bug: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    death, fault = CAUGHT[bug]

    outcome = sum_of(in_directory(processes, point, seed, death, bug) for point in LATE for seed in range(2))

    assert outcome.faults[fault] > 0
