"""The audit log says who did what, and no log says how they proved who they are."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from preceptor_service.access.audit import AuditLog
from preceptor_service.config import ConfigError
from tests.access import calls
from tests.access.conftest import Guarded


def test_each_push_creation_and_deletion_is_one_line(guarded: Guarded, opened: grpc.Channel, new_id: str) -> None:
    before = len(guarded.audit_lines())
    did: list[tuple[str, str, str]] = [
        ("CreateRun", "owner", "OK"),
        ("GetRun", "owner", "OK"),
        ("PushWeights", "pusher", "OK"),
        ("PushWeights", "scorer", "PERMISSION_DENIED"),
        ("Select", "scorer", "OK"),
        ("DeleteRun", "pusher", "PERMISSION_DENIED"),
        ("DeleteRun", "owner", "OK"),
        ("DeleteRun", "owner", "NOT_FOUND"),
        ("CreateRun", "nobody", "UNAUTHENTICATED"),
    ]
    digest = ""
    for name, caller, code in did:
        answer = calls.answer(opened, name, new_id, calls.bearer(guarded.token(caller)))
        assert answer.code == code
        if name == "PushWeights" and code == "OK":
            digest = answer.messages[0].version.digest
    lines = guarded.audit_lines()[before:]
    expected = [
        (name, caller, code)
        for name, caller, code in did
        if name in ("CreateRun", "PushWeights", "DeleteRun") and code != "UNAUTHENTICATED"
    ]
    assert [(line["method"], line["identity"], line["code"]) for line in lines] == expected
    assert {line["run"] for line in lines} == {new_id}
    assert [line["digest"] for line in lines if line["digest"]] == [digest]
    assert all(line["peer"].startswith("ipv4:127.0.0.1:") for line in lines)
    assert all(line["time"].endswith("+00:00") for line in lines)


def test_no_log_and_no_error_holds_a_token(
    start_guarded: Callable[..., Guarded], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    guarded = start_guarded()
    callers = [*guarded.access.tokens, "unknown", "oidc scorer", "oidc expired", "oidc alg none", "oidc HS256"]
    tokens = [guarded.token(caller) or "" for caller in callers]
    said = []
    with calls.channel(guarded.target) as opened:
        for token in tokens:
            said += [
                calls.answer(opened, name, "team-quiet", calls.bearer(token)).details
                for name in ("CreateRun", "GetRun", "Select", "PushWeights", "DeleteRun")
            ]
            said.append(calls.answer(opened, "GetRun", "x", (("authorization", token),)).details)
    written = "\n".join([*said, caplog.text, *capfd.readouterr(), guarded.audit.read_text()])
    assert "team-quiet" in written
    for token in tokens:
        secrets = [part for part in token.split(".") if len(part) > 40] or [token]
        assert not any(secret in written for secret in [*secrets[-2:], token])


def test_a_line_stays_one_line_whatever_the_caller_names(guarded: Guarded, opened: grpc.Channel) -> None:
    before = len(guarded.audit_lines())
    name = 'x\n{"identity": "admin"}' + "y" * 1000
    assert calls.answer(opened, "DeleteRun", name, calls.bearer(guarded.token("admin"))).code == "NOT_FOUND"
    (line,) = guarded.audit_lines()[before:]
    assert line["run"] == name[:64]


def test_a_file_that_was_moved_away_is_opened_anew_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(path, to_standard_error=False)
    assert os.stat(path).st_mode & 0o077 == 0
    for run in ("first", "second"):
        log.write("CreateRun", run=run, identity="a", peer="p", code="OK")
        path.rename(tmp_path / run)
    log.close()
    assert [json.loads((tmp_path / run).read_text())["run"] for run in ("first", "second")] == ["first", "second"]


def test_a_file_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"audit\.file: cannot write .*: No such file"):
        AuditLog(tmp_path / "missing" / "audit.log", to_standard_error=False)


def test_reading_a_ledger_is_one_line_however_long_it_is(guarded: Guarded, opened: grpc.Channel, run_id: str) -> None:
    for caller, code in (("scorer", "OK"), ("owner", "OK"), ("pusher", "PERMISSION_DENIED")):
        before = len(guarded.audit_lines())
        assert calls.answer(opened, "ReadLedger", run_id, calls.bearer(guarded.token(caller))).code == code
        (line,) = guarded.audit_lines()[before:]
        assert (line["method"], line["run"], line["identity"], line["code"]) == ("ReadLedger", run_id, caller, code)
