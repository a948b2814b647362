"""A run that was deleted and created anew has the name of the former one, and nothing else of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from preceptor import Run, RunSpec, SelectionClient
from preceptor.errors import ClosedError
from tests.client.conftest import candidates
from tests.client.fake_service import FakeService, Received, Stream

SPEC = RunSpec("digits", "small_cnn")


@pytest.fixture
def other(service: FakeService) -> Iterator[SelectionClient]:
    """Another trainer's client."""
    with SelectionClient(service.target, timeout_s=20.0) as other:
        yield other


def at_version_5(stream: Stream, received: Received) -> None:
    stream.answer(received, learner_version=5)


def hold(stream: Stream, received: Received) -> None:
    """Answers nothing."""


def test_a_new_life_knows_no_version_and_no_step_of_the_former_one(
    service: FakeService, client: SelectionClient, other: SelectionClient, run: Run
) -> None:
    service.on_super_batch = at_version_5
    run.select(candidates(), 2, step=7)
    run.score(candidates())
    other.delete_run("digits")

    anew = client.create_run(SPEC)

    assert anew.next_step() == 0
    anew.score(candidates())
    assert anew.select(candidates(), 2, step=0).step == 0
    opened = [stream.open.HasField("observed_learner_version") for stream in service.streams if stream.open]
    assert opened == [False, False]
    scored = [header.HasField("observed_learner_version") for header in service.score_requests]
    assert scored == [True, False]


def test_handles_of_one_life_share_its_versions_and_steps(client: SelectionClient, service: FakeService) -> None:
    service.on_super_batch = at_version_5
    client.create_run(SPEC).select(candidates(), 2, step=7)
    again = client.get_run("digits")
    assert again.next_step() == 8
    again.score(candidates())
    assert service.score_requests[0].observed_learner_version == 5
    assert len(service.streams) == 1


def test_a_handle_of_a_former_life_says_how_to_get_one_that_works(
    service: FakeService, client: SelectionClient, other: SelectionClient, run: Run
) -> None:
    service.on_super_batch = hold
    pending = run.submit(candidates(), 2, step=0)
    other.delete_run("digits")
    anew = client.create_run(SPEC)
    advice = "was deleted and created anew; create_run or get_run gives a handle that works"

    with pytest.raises(ClosedError, match=advice):
        pending.result(20)
    with pytest.raises(ClosedError, match=advice):
        run.select(candidates(), 2, step=1)
    with pytest.raises(ClosedError, match=advice):
        run.score(candidates())

    service.on_super_batch = at_version_5
    assert anew.select(candidates(), 2, step=0).learner_version == 5


def test_a_handle_whose_run_this_client_deleted_says_how_to_get_one_that_works(
    client: SelectionClient, run: Run
) -> None:
    client.delete_run("digits")
    client.create_run(SPEC)
    with pytest.raises(ClosedError, match="was deleted; create_run or get_run gives a handle that works"):
        run.select(candidates(), 2, step=0)
