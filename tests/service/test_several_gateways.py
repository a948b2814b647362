"""Two gateways on one store: what goes through one is used by the other, and no trainer sees versions go back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from preceptor import Run, SelectionClient
from preceptor.errors import RunNotFoundError
from preceptor_service.app import RunningService, start_service
from tests.service import digits
from tests.service.conftest import Metrics, config, metrics_of, target_of, wait_until
from tests.service.raw import RawChannel, select_open, super_batch


@dataclass(frozen=True)
class Site:
    """One gateway and a client of it."""

    service: RunningService
    client: SelectionClient
    metrics: Metrics


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Site]]:

    store = tmp_path_factory.mktemp("shared")
    services = [start_service(config(store)) for _ in range(2)]
    clients = [SelectionClient(target_of(service), timeout_s=20.0) for service in services]
    here, there = (
        Site(service, client, metrics_of(service)) for service, client in zip(services, clients, strict=True)
    )
    yield here, there
    for client in clients:
        client.close()
    for service in services:
        service.stop()


def _ready(site: Site, run_id: str) -> Run:
    run = site.client.create_run(digits.spec(run_id))
    run.push_reference(digits.weights(2))
    run.push_weights(digits.weights(1), step=0)
    return run


def test_both_gateways_select_the_same(sites: tuple[Site, Site], run_id: str) -> None:
    here = _ready(sites[0], run_id)
    there = sites[1].client.get_run(run_id)
    batch = digits.candidates(0)
    wanted = digits.expected(here.spec, batch, digits.weights(1), digits.weights(2), count=8, step=1)
    assert here.select(batch, sub_batch_size=8, step=1).indices.tolist() == wanted
    assert there.select(batch, sub_batch_size=8, step=1).indices.tolist() == wanted


def test_a_push_through_one_gateway_is_soon_used_by_the_other(sites: tuple[Site, Site], run_id: str) -> None:
    here = _ready(sites[0], run_id)
    there = sites[1].client.get_run(run_id)
    assert there.select(digits.candidates(0), sub_batch_size=4, step=1).learner_version == 1
    here.push_weights(digits.weights(5), step=10)
    steps = iter(range(2, 100_000))

    def uses_the_push() -> bool:
        return there.select(digits.candidates(0), sub_batch_size=4, step=next(steps)).learner_version == 2

    wait_until(uses_the_push, "the other gateway used version 2")
    step = next(steps)
    assert there.select(digits.candidates(1), sub_batch_size=4, step=step).indices.tolist() == digits.expected(
        here.spec, digits.candidates(1), digits.weights(5), digits.weights(2), count=4, step=step
    )


def test_a_trainer_that_has_seen_a_push_gets_it_from_the_other_gateway_at_once(
    sites: tuple[Site, Site], run_id: str
) -> None:
    here = _ready(sites[0], run_id)
    there = sites[1].client.get_run(run_id)
    for version in range(2, 8):
        there.select(digits.candidates(0), sub_batch_size=4, step=version)  # the other one has just looked
        here.push_weights(digits.weights(version), step=version)
        with RawChannel(target_of(sites[1].service)) as channel:
            call = channel.call("Select", select_open(run_id, observed=version))
            call.send(*super_batch(digits.candidates(1), step=1000 + version))
            assert call.answer().selection.learner_version == version
            call.cancel()


def test_scoring_through_the_other_gateway_never_goes_back_either(sites: tuple[Site, Site], run_id: str) -> None:
    here = _ready(sites[0], run_id)
    there = sites[1].client.get_run(run_id)
    there.score(digits.candidates(0))
    here.push_weights(digits.weights(5), step=1)
    there._stream.observe(2)
    scores = there.score(digits.candidates(0))
    assert scores.learner_version == 2
    assert scores.learner_losses is not None
    assert scores.learner_losses.tolist() == pytest.approx(
        digits.losses(digits.weights(5), digits.candidates(0)), rel=1e-4, abs=1e-5
    )


def test_a_run_deleted_through_one_gateway_is_gone_from_the_other(sites: tuple[Site, Site], run_id: str) -> None:
    _ready(sites[0], run_id)
    there = sites[1].client.get_run(run_id)
    there.select(digits.candidates(0), sub_batch_size=4, step=1)
    assert run_id in sites[1].metrics.runs()
    sites[0].client.delete_run(run_id)
    assert run_id not in [run.spec.run_id for run in sites[1].client.list_runs()]
    assert run_id not in sites[1].metrics.runs()
    with pytest.raises(RunNotFoundError):
        there.select(digits.candidates(0), sub_batch_size=4, step=2)


def test_after_a_restart_run_and_weights_are_there(
    start: Callable[..., RunningService], tmp_path: Path, run_id: str
) -> None:
    before = start(tmp_path / "kept")
    with SelectionClient(target_of(before)) as client:
        run = client.create_run(digits.spec(run_id))
        run.push_reference(digits.weights(2))
        run.push_weights(digits.weights(1), step=3)
        first = run.select(digits.candidates(0), sub_batch_size=8, step=4)
        told = run.status()
    before.stop()
    after = start(tmp_path / "kept")
    with SelectionClient(target_of(after)) as client:
        assert [found.spec for found in client.list_runs()] == [run.spec]
        again = client.get_run(run_id)
        assert again.select(digits.candidates(0), sub_batch_size=8, step=4).indices.tolist() == first.indices.tolist()
        status = again.status()
        kept = ("learner_version", "learner_step", "reference_digest", "micro_batch_rows", "create_time_s")
        assert [getattr(status, name) for name in kept] == [getattr(told, name) for name in kept]
