"""The plain calls, credentials, and the error tree: whatever happens, a trainer sees a `PreceptorError`."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import grpc
import numpy as np
import pytest

from preceptor import PreceptorError, Run, RunSpec, SelectionClient, Tls
from preceptor.errors import (
    ClosedError,
    DeadlineExceededError,
    OverloadedError,
    RunExistsError,
    RunNotFoundError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from tests.client.conftest import candidates
from tests.client.fake_service import Abort, FakeService

SPEC = RunSpec("digits", "small_cnn", model_config={"num_classes": 10}, max_staleness_steps=3, deadline_s=1.5)
SHORT_S = 0.15

CALLS: dict[str, Callable[[SelectionClient, Run], object]] = {
    "CreateRun": lambda client, run: client.create_run(SPEC),
    "GetRun": lambda client, run: client.get_run("digits"),
    "ListRuns": lambda client, run: client.list_runs(),
    "DeleteRun": lambda client, run: client.delete_run("digits"),
    "Select": lambda client, run: run.select(candidates(), 2, 0, timeout_s=SHORT_S),
    "Score": lambda client, run: run.score(candidates(), timeout_s=SHORT_S),
    "PushWeights": lambda client, run: run.push_weights({"w": np.zeros(2)}, 0, timeout_s=SHORT_S),
    "PushWeights of a reference": lambda client, run: run.push_reference({"w": np.zeros(2)}, timeout_s=SHORT_S),
    "GetRun by a run": lambda client, run: run.status(),
}
CODES = [code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK]


def unused_target() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{unused.getsockname()[1]}"


def test_a_run_is_created_read_listed_and_deleted(service: FakeService, client: SelectionClient) -> None:
    run = client.create_run(SPEC)

    assert run.spec == SPEC
    assert run.run_id == "digits"
    assert run.columns == ("image", "label")
    assert client.get_run("digits").spec == SPEC
    assert [status.spec.run_id for status in client.list_runs()] == ["digits"]
    assert run.status().micro_batch_rows == 32
    assert run.status().learner_version is None
    client.delete_run("digits")
    assert service.runs == {}
    with pytest.raises(RunNotFoundError, match="digits"):
        run.status()


def test_score_returns_losses_and_scores_and_tells_the_version_it_has_seen(service: FakeService, run: Run) -> None:
    service.learner_version = 4

    scores = run.score(candidates(rows=3), example_id=["a", "b", "c"])
    run.score(candidates(rows=3))

    assert scores.scores.tolist() == [0, 1, 2]
    assert scores.learner_losses is not None
    assert scores.learner_losses.tolist() == [2, 2, 2]
    assert scores.reference_losses is None
    assert scores.learner_version == 4
    first, second = service.score_requests
    assert (first.run_id, first.row_count, first.HasField("observed_learner_version")) == ("digits", 3, False)
    assert second.observed_learner_version == 4


@pytest.fixture(scope="module")
def refusing() -> FakeService:
    """A service for many short tests, each with a client of its own."""
    return FakeService()


@pytest.fixture(scope="module")
def refusing_target(refusing: FakeService) -> object:
    with refusing:
        yield refusing.target


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("call", CALLS)
def test_every_status_of_every_call_becomes_an_error_of_the_tree(
    refusing: FakeService, refusing_target: str, call: str, code: str
) -> None:
    with SelectionClient(refusing_target, timeout_s=1.0) as client:
        refusing.aborts.clear()
        run = client.create_run(SPEC)
        refusing.aborts[call.split()[0]] = Abort(code)
        with pytest.raises(PreceptorError) as raised:
            CALLS[call](client, run)
    may_repeat = call.split()[0] in ("CreateRun", "GetRun", "Select", "PushWeights")
    repeated = code in ("UNAVAILABLE", "CANCELLED", "INTERNAL", "DEADLINE_EXCEEDED")
    if may_repeat and repeated:
        assert raised.value.code in (code, "UNAVAILABLE", "DEADLINE_EXCEEDED")
    else:
        known = code not in ("UNKNOWN", "OUT_OF_RANGE", "DATA_LOSS")
        assert raised.value.code == (code if known else "UNKNOWN")
    assert "the test said so" in str(raised.value) or raised.value.code == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("call", CALLS)
def test_a_server_that_is_down_is_an_unavailable_error_that_names_it(service: FakeService, call: str) -> None:
    with SelectionClient(service.target, timeout_s=1.0) as client:
        run = client.create_run(SPEC)
        service.stop()
        with pytest.raises(UnavailableError, match=service.target):
            CALLS[call](client, run)


def test_a_run_is_created_by_a_trainer_that_starts_while_its_gateway_is_replaced(
    service: FakeService, client: SelectionClient, caplog: pytest.LogCaptureFixture
) -> None:
    service.first_aborts["CreateRun"] = [Abort("UNAVAILABLE")] * 3
    assert client.create_run(SPEC).spec == SPEC
    assert service.calls["CreateRun"] == 4
    assert [record.getMessage() for record in caplog.records if "was not created yet" in record.getMessage()]


def test_a_run_is_read_by_a_trainer_that_starts_while_its_gateway_is_replaced(
    service: FakeService, client: SelectionClient
) -> None:
    client.create_run(SPEC)
    service.first_aborts["GetRun"] = [Abort("UNAVAILABLE")] * 3
    assert client.get_run("digits").spec == SPEC
    assert service.calls["GetRun"] == 4


def test_a_call_that_met_an_overload_comes_back_when_it_was_told_to(
    service: FakeService, client: SelectionClient
) -> None:
    full = Abort("RESOURCE_EXHAUSTED", "OVERLOADED", "too many calls", retry_after_s=0.3)
    service.first_aborts["CreateRun"] = [full, full]
    began = time.monotonic()
    assert client.create_run(SPEC).spec == SPEC
    assert service.calls["CreateRun"] == 3
    assert time.monotonic() - began >= 0.6


def test_an_overload_that_lasts_is_raised_as_one_when_time_is_up(service: FakeService) -> None:
    service.aborts["CreateRun"] = Abort("RESOURCE_EXHAUSTED", "OVERLOADED", "too many calls", retry_after_s=0.2)
    with (
        SelectionClient(service.target, timeout_s=1.0) as client,
        pytest.raises(
            OverloadedError, match=r"'digits' was not created by .* within 1 s; last: too many calls"
        ) as raised,
    ):
        client.create_run(SPEC)
    assert raised.value.retry_after_s == 0.2
    assert 2 <= service.calls["CreateRun"] <= 5


def test_an_overload_without_a_time_to_come_back_is_raised_at_once(
    service: FakeService, client: SelectionClient
) -> None:
    service.aborts["CreateRun"] = Abort("RESOURCE_EXHAUSTED", "OVERLOADED", "gateway.max_runs is 8")
    with pytest.raises(OverloadedError, match=r"^gateway.max_runs is 8$"):
        client.create_run(SPEC)
    assert service.calls["CreateRun"] == 1


@pytest.mark.parametrize("call", CALLS)
def test_a_closed_client_says_so(client: SelectionClient, call: str) -> None:
    run = client.create_run(SPEC)
    client.close()
    client.close()
    with pytest.raises(ClosedError, match="closed"):
        CALLS[call](client, run)


def test_the_reason_picks_the_class_and_the_gateways_words_stay_as_they_are(
    service: FakeService, client: SelectionClient
) -> None:
    service.aborts["CreateRun"] = Abort("ALREADY_EXISTS", "RUN_EXISTS", "run 'digits' has seed 1, not 0")
    with pytest.raises(RunExistsError) as raised:
        client.create_run(SPEC)
    assert str(raised.value) == "run 'digits' has seed 1, not 0"
    assert raised.value.__cause__ is None


def test_a_call_that_takes_too_long_is_a_deadline_error(service: FakeService) -> None:
    with SelectionClient(service.target, timeout_s=SHORT_S) as client:
        service.slow_calls.add("ListRuns")
        with pytest.raises(DeadlineExceededError, match=f"ListRuns to {service.target}"):
            client.list_runs()


def test_a_method_that_the_server_does_not_know_is_an_unimplemented_error() -> None:
    older = FakeService(without=("ListRuns",))
    with older, SelectionClient(older.target) as client, pytest.raises(UnimplementedError):
        client.list_runs()


def test_a_token_travels_as_bearer_in_every_call(service: FakeService) -> None:
    with SelectionClient(service.target, token="sesame") as client:
        run = client.create_run(SPEC)
        run.select(candidates(), 2, 0)
        run.score(candidates())
        run.push_weights({"w": np.zeros(2)}, 0)
    assert service.metadata.keys() == {"CreateRun", "Select", "Score", "PushWeights"}
    assert all(metadata["authorization"] == "Bearer sesame" for metadata in service.metadata.values())


def test_a_refused_token_is_an_unauthenticated_error(service: FakeService) -> None:
    service.aborts["CreateRun"] = Abort("UNAUTHENTICATED", "UNAUTHENTICATED", "no such token")
    with SelectionClient(service.target, token="wrong") as client, pytest.raises(UnauthenticatedError):
        client.create_run(SPEC)


@pytest.mark.parametrize("target", ["localhost:1", "127.0.0.1:1", "127.1.2.3:1", "[::1]:1"])
def test_a_token_may_go_in_the_clear_to_this_machine(target: str) -> None:
    SelectionClient(target, token="sesame").close()


@pytest.mark.parametrize("target", ["gateway:7600", "10.0.0.1:7600", "[2001:db8::1]:7600", "localhost.evil.org:1"])
def test_a_token_in_the_clear_to_another_machine_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="unencrypted; pass tls=") as raised:
        SelectionClient(target, token="sesame")
    assert "sesame" not in str(raised.value)
    SelectionClient(target, token="sesame", tls=Tls()).close()


@pytest.mark.parametrize(
    "target", ["", "localhost", "localhost:", ":7600", "localhost:70000", "http://a:1", "::1:7600"]
)
def test_a_target_that_is_no_host_and_port_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=r"give 'host:port'"):
        SelectionClient(target)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_a_timeout_that_is_not_above_zero_and_finite_is_refused(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s is"):
        SelectionClient("localhost:1", timeout_s=timeout_s)


def test_half_of_mutual_tls_is_refused_and_no_key_is_printed() -> None:
    with pytest.raises(ValueError, match="both private_key and certificate_chain"):
        Tls(private_key=b"secret")
    assert "secret" not in repr(Tls(private_key=b"secret", certificate_chain=b"public"))


def test_a_plaintext_server_behind_a_tls_client_is_unavailable(service: FakeService) -> None:
    with SelectionClient(service.target, tls=Tls()) as client, pytest.raises(UnavailableError):
        client.list_runs()


def test_nobody_listening_is_unavailable_at_the_first_call() -> None:
    target = unused_target()
    with (
        SelectionClient(target, timeout_s=0.5) as client,
        pytest.raises(UnavailableError, match=f"CreateRun to {target}"),
    ):
        client.create_run(SPEC)
