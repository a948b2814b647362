"""A client puts super-batches into a memory bank and samples from it, whatever the connection does meanwhile."""

from __future__ import annotations

import numpy as np
import pytest

from preceptor import Run, RunSpec, SelectionClient, batches
from preceptor.errors import BankShortError, ClosedError, StepExistsError, UnavailableError, UnimplementedError
from tests.client.conftest import candidates
from tests.client.fake_service import Abort, FakeService

DRAINS = Abort("UNAVAILABLE", "GATEWAY_DRAINING", "gateway 3 is draining")
SHORT = Abort("FAILED_PRECONDITION", "BANK_SHORT", "holds 3 examples")


def test_remember_sends_the_super_batch_whole_in_pieces_of_at_most_1_mib(service: FakeService, run: Run) -> None:
    batch, ids = candidates(rows=600, width=1024), np.arange(600) + 2**40
    remembered = run.remember(batch, ids, step=4, rank=2)
    [(header, body)] = service.remembered
    encoded = batches.encode(batch, ids)
    assert len(body) > 2 << 20
    assert body == bytes(encoded.body)
    assert (header.run_id, header.step, header.rank, header.row_count) == ("digits", 4, 2, 600)
    assert (header.body_bytes, header.digest) == (len(body), encoded.digest)
    assert not header.HasField("observed_learner_version")
    assert remembered.scores.tolist() == list(range(600))
    assert (remembered.learner_version, remembered.learner_step) == (None, None)


def test_a_version_that_was_seen_is_asked_for_from_then_on(service: FakeService, run: Run) -> None:
    service.learner_version = 7
    run.remember(candidates(), range(8), step=0)
    run.remember(candidates(), range(8), step=1)
    assert service.remembered[1][0].observed_learner_version == 7


def test_sample_names_what_it_wants(service: FakeService, run: Run) -> None:
    sampled = run.sample(np.int64(3), step=9, rank=1)  # type: ignore[arg-type]
    [request] = service.samples
    assert (request.run_id, request.step, request.rank, request.sub_batch_size) == ("digits", 9, 1, 3)
    assert (sampled.step, sampled.rank, sampled.example_id.tolist()) == (9, 1, [0, 1, 2])
    assert (sampled.learner_versions, sampled.staleness_steps, sampled.weights) == (None, None, None)


def test_both_are_repeated_while_the_service_is_unavailable(service: FakeService, run: Run) -> None:
    service.first_aborts = {"Remember": [DRAINS, Abort("UNAVAILABLE")], "SampleBank": [Abort("UNAVAILABLE"), DRAINS]}
    assert run.remember(candidates(), range(8), step=0).examples == 8
    assert len(run.sample(2, step=0).example_id) == 2
    assert (service.calls["Remember"], service.calls["SampleBank"]) == (3, 3)


def test_the_last_failure_is_named_where_it_stays_unavailable(service: FakeService, run: Run) -> None:
    service.aborts = {"Remember": DRAINS, "SampleBank": DRAINS}
    with pytest.raises(UnavailableError, match=r"step 3 was not put into .*'digits'.* 0\.2 s; last: gateway 3 is"):
        run.remember(candidates(), range(8), step=3, timeout_s=0.2)
    with pytest.raises(UnavailableError, match=r"step 5 was not sampled from .*'digits'.* 0\.2 s; last: gateway 3 is"):
        run.sample(2, step=5, timeout_s=0.2)


def test_what_is_refused_is_not_repeated(service: FakeService, run: Run) -> None:
    service.aborts = {"Remember": Abort("ALREADY_EXISTS", "STEP_EXISTS", "was used"), "SampleBank": SHORT}
    with pytest.raises(StepExistsError, match="was used"):
        run.remember(candidates(), range(8), step=0)
    with pytest.raises(BankShortError, match="holds 3 examples"):
        run.sample(4, step=0)
    assert (service.calls["Remember"], service.calls["SampleBank"]) == (1, 1)


def test_sample_waits_for_a_bank_that_is_short_as_long_as_it_is_told_to(service: FakeService, run: Run) -> None:
    service.first_aborts = {"SampleBank": [SHORT] * 3}
    assert len(run.sample(4, step=0, wait_s=20).example_id) == 4
    assert service.calls["SampleBank"] == 4
    service.aborts = {"SampleBank": SHORT}
    with pytest.raises(BankShortError):
        run.sample(4, step=1, wait_s=0.3)
    assert service.calls["SampleBank"] > 5


def test_a_closed_client_neither_remembers_nor_samples(run: Run) -> None:
    run._connection.close()
    with pytest.raises(ClosedError):
        run.remember(candidates(), range(8), step=0)
    with pytest.raises(ClosedError):
        run.sample(1, step=0)


def test_a_service_that_knows_no_banks_is_named_as_such() -> None:
    with FakeService(without=("Remember", "SampleBank")) as service, SelectionClient(service.target) as client:
        run = client.create_run(RunSpec("digits", "small_cnn"))
        with pytest.raises(UnimplementedError):
            run.sample(1, step=0)


@pytest.mark.parametrize("ids", [range(7), ["a"] * 9, np.ones((8, 1)), [1.5] * 8], ids=["few", "many", "2-d", "real"])
def test_ids_that_do_not_go_with_the_candidates_are_refused_before_anything_is_sent(
    service: FakeService, run: Run, ids: object
) -> None:
    with pytest.raises((ValueError, TypeError), match=r"columns differ in rows|example_id has"):
        run.remember(candidates(), ids, step=0)
    assert service.calls["Remember"] == 0
