"""Every rpc with every kind of credentials."""

from __future__ import annotations

import grpc
import pytest

from preceptor.wire import methods
from preceptor_service.gateway.access_rules import RULES
from tests.access import calls
from tests.access.conftest import Guarded
from tests.access.expected import ALLOWED, EVERY, UNKNOWN


def test_every_rpc_of_the_contract_has_a_rule_and_nothing_else_has() -> None:
    assert set(RULES) == {method.path for method in methods()}
    assert {method.name for method in methods()} == EVERY


@pytest.mark.parametrize("name", sorted(EVERY))
@pytest.mark.parametrize("caller", ALLOWED)
def test_a_known_caller_may_do_what_it_was_granted_and_nothing_else(
    guarded: Guarded, opened: grpc.Channel, run_id: str, caller: str, name: str
) -> None:
    subject = f"{run_id}-new" if name == "CreateRun" else run_id
    answer = calls.answer(opened, name, subject, calls.bearer(guarded.token(caller)))
    if name in ALLOWED[caller]:
        assert (answer.code, answer.details) == ("OK", "")
    else:
        assert (answer.code, answer.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
        assert subject in answer.details
        assert answer.messages == []


@pytest.mark.parametrize("name", sorted(EVERY))
@pytest.mark.parametrize("caller", UNKNOWN)
def test_a_caller_without_valid_credentials_may_do_nothing(
    guarded: Guarded, opened: grpc.Channel, run_id: str, caller: str, name: str
) -> None:
    token = guarded.token(caller)
    answer = calls.answer(opened, name, run_id, calls.bearer(token))
    assert (answer.code, answer.reason, answer.messages) == ("UNAUTHENTICATED", "UNAUTHENTICATED", [])
    assert token is None or token not in answer.details


@pytest.mark.parametrize(
    "values",
    [
        ["Basic b3duZXI6"],
        ["Bearer "],
        ["Bearer"],
        [""],
        ["{token}"],
        ["Bearer {token}", "Bearer {token}"],
        ["x" * 6000],
    ],
    ids=lambda values: "+".join(values)[:30],
)
def test_an_authorization_that_is_not_one_bearer_token_is_refused(
    guarded: Guarded, opened: grpc.Channel, values: list[str]
) -> None:
    token = guarded.token("admin") or ""
    metadata = tuple(("authorization", value.format(token=token)) for value in values)
    answer = calls.answer(opened, "ListRuns", "", metadata)
    assert answer.code == "UNAUTHENTICATED"
    assert token not in answer.details


def test_runs_are_listed_to_those_who_may_score_them(guarded: Guarded, opened: grpc.Channel, run_id: str) -> None:
    def listed(caller: str) -> set[str]:
        answer = calls.answer(opened, "ListRuns", "", calls.bearer(guarded.token(caller)))
        return {run.spec.run_id for run in answer.messages[0].runs}

    for caller in ("owner", "scorer", "admin", "oidc scorer"):
        assert run_id in listed(caller)
    for caller in ("pusher", "creator", "elsewhere", "stranger", "oidc stranger"):
        assert run_id not in listed(caller)
    assert listed("stranger") == set()


def test_who_may_not_touch_a_run_cannot_tell_whether_there_is_one(
    guarded: Guarded, opened: grpc.Channel, run_id: str
) -> None:
    for name in EVERY - {"CreateRun", "ListRuns"}:
        for caller in ("stranger", "elsewhere"):
            there = calls.answer(opened, name, run_id, calls.bearer(guarded.token(caller)))
            absent = calls.answer(opened, name, "team-absent", calls.bearer(guarded.token(caller)))
            assert (there.code, absent.code) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
            assert there.details.replace(run_id, "team-absent") == absent.details


def test_who_might_create_a_run_is_told_that_there_is_none(guarded: Guarded, opened: grpc.Channel) -> None:
    answer = calls.answer(opened, "GetRun", "team-absent", calls.bearer(guarded.token("owner")))
    assert (answer.code, answer.reason) == ("NOT_FOUND", "RUN_NOT_FOUND")


@pytest.mark.parametrize("changes", [{}, {"seed": 7}], ids=["same settings", "other settings"])
def test_a_run_of_somebody_else_is_neither_shown_nor_taken_by_creating_it_again(
    guarded: Guarded, opened: grpc.Channel, run_id: str, changes: dict[str, int]
) -> None:
    answer = calls.answer(opened, "CreateRun", run_id, calls.bearer(guarded.token("creator")), **changes)
    assert (answer.code, answer.messages) == ("PERMISSION_DENIED", [])
    assert "belongs to somebody else" in answer.details
    assert "seed" not in answer.details


@pytest.mark.parametrize("name", ["../team-a", "team-a/../../etc", "TEAM", "", "team-" + "x" * 100])
def test_a_name_that_is_none_reaches_no_file(guarded: Guarded, opened: grpc.Channel, name: str) -> None:
    assert calls.answer(opened, "GetRun", name, calls.bearer(guarded.token("stranger"))).code == "PERMISSION_DENIED"
    assert calls.answer(opened, "GetRun", name, calls.bearer(guarded.token("admin"))).code == "NOT_FOUND"


def test_a_reference_is_adopted_only_from_a_run_that_the_caller_may_score(
    guarded: Guarded, opened: grpc.Channel, run_id: str
) -> None:
    pushed = calls.answer(opened, "PushWeights", run_id, calls.bearer(guarded.token("owner")), seed=77)
    digest = pushed.messages[0].version.digest
    hidden = calls.answer(
        opened, "CreateRun", f"{run_id}-b", calls.bearer(guarded.token("creator")), reference_digest=digest
    )
    unknown = f"sha256:{'0' * 64}"
    absent = calls.answer(
        opened, "CreateRun", f"{run_id}-c", calls.bearer(guarded.token("creator")), reference_digest=unknown
    )
    assert (hidden.code, hidden.reason) == (absent.code, absent.reason) == ("NOT_FOUND", "WEIGHTS_NOT_FOUND")
    assert hidden.details.replace(digest, unknown) == absent.details
    for caller in ("owner", "admin"):
        adopted = calls.answer(
            opened, "CreateRun", f"{run_id}-{caller}", calls.bearer(guarded.token(caller)), reference_digest=digest
        )
        assert (adopted.code, adopted.messages[0].run.reference_digest) == ("OK", digest)
