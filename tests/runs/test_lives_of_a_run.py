"""Two gateways on one store agree on which life of a run is meant."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NoReturn

import pytest

from preceptor import Run, SelectionClient
from preceptor.errors import InvalidWeightsError, RunNotFoundError, WeightsMissingError, WeightsNotFoundError
from tests.ray.candidates import COUNT, SETTINGS, expected, ready_run, spec, state, super_batch
from tests.ray.conftest import start
from tests.stores import Place

Clients = tuple[SelectionClient, SelectionClient]


@pytest.fixture
def gateways(place: Place) -> Iterator[Clients]:
    """Clients of two gateways that share one store."""
    with ExitStack() as stack:
        clients = []
        for _ in range(2):
            service = start("in-process", place.settings)
            stack.callback(service.stop)
            clients.append(stack.enter_context(SelectionClient(f"127.0.0.1:{service.ports.grpc}")))
        yield clients[0], clients[1]


def test_a_run_made_anew_through_one_gateway_is_not_answered_from_its_former_life_by_the_other(
    gateways: Clients,
) -> None:
    here, there = gateways
    old = spec("phoenix", temperature=1.0)
    ready_run(here, old)
    before = there.get_run("phoenix")
    before.select(super_batch(1), COUNT, step=1)
    here.delete_run("phoenix")
    new = spec("phoenix", temperature=0.2)
    ready_run(here, new).push_weights(state("learner-2"), step=5)
    with pytest.raises(RunNotFoundError, match="was deleted"):
        select_for_ever(before)
    selection = there.get_run("phoenix").select(super_batch(1), COUNT, step=1)
    assert selection.indices.tolist() == expected(new, 1, learner="learner-2")


def select_for_ever(run: Run) -> NoReturn:
    for step in itertools.count(2):
        run.select(super_batch(1), COUNT, step=step)
    raise AssertionError("counting ended")


def test_weights_of_a_former_life_do_not_come_back(gateways: Clients) -> None:
    here, _ = gateways
    ready_run(here, spec("reborn"))
    here.delete_run("reborn")
    run = here.create_run(spec("reborn"))
    with pytest.raises(WeightsMissingError, match="has no learner weights"):
        run.select(super_batch(1), COUNT, step=1)


def test_a_reference_that_the_service_holds_is_adopted_by_its_digest(gateways: Clients) -> None:
    here, there = gateways
    pushed = here.create_run(spec("giver")).push_reference(state("reference"))
    settings = spec("taker", reference_digest=pushed.digest)
    run = there.create_run(settings)
    run.push_weights(state("learner-1"), step=0)
    assert run.select(super_batch(1), COUNT, step=1).indices.tolist() == expected(settings, 1)


def test_a_reference_that_is_not_there_or_does_not_fit_makes_no_run(gateways: Clients) -> None:
    here, _ = gateways
    with pytest.raises(WeightsNotFoundError):
        here.create_run(spec("nobody", reference_digest="sha256:" + "0" * 64))
    pushed = here.create_run(spec("small")).push_reference(state("reference"))
    with pytest.raises(InvalidWeightsError, match="conv1"):
        here.create_run(spec("wide", model_config={**SETTINGS, "width": 7}, reference_digest=pushed.digest))
    assert [run.spec.run_id for run in here.list_runs()] == ["small"]
