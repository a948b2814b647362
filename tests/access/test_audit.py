"""The audit log says who did what, and no log says how they proved who they are."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from preceptor_service.access.audit import AuditLog, audit
from preceptor_service.config import ConfigError
from preceptor_service.process_log import LOG_TO
from tests.access import calls
from tests.access.conftest import Guarded
from tests.service.conftest import metrics_of

FULL = Path("/dev/full")


def write(log: AuditLog, run: str) -> None:
    log.write("CreateRun", run=run, identity="a", peer="p", code="OK")


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
    for run in ("first", "second"):
        write(log, run)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.rename(tmp_path / run)
    log.close()
    assert [json.loads((tmp_path / run).read_text())["run"] for run in ("first", "second")] == ["first", "second"]


@pytest.mark.skipif(not FULL.exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("cause", ["full", "gone"])
def test_lines_that_the_file_does_not_take_are_counted_and_in_the_log_of_the_process(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    cause: str,
) -> None:
    monkeypatch.setattr(audit, "propagate", False)  # without pytest's handlers, as in a gateway
    monkeypatch.setattr(audit, "handlers", [])
    monkeypatch.delenv(LOG_TO, raising=False)
    folder, failures = tmp_path / "folder", []
    folder.mkdir()
    path = folder / "audit.log" if cause == "gone" else FULL
    log = AuditLog(path, to_standard_error=True, on_failure=lambda: failures.append(1))
    if cause == "gone":
        path.unlink()
        folder.rmdir()
    for run in ("first", "second"):
        write(log, run)
    log.close()
    assert [json.loads(line)["run"] for line in capfd.readouterr().err.splitlines()] == ["first", "second"]
    assert len(failures) == 2
    assert caplog.text.count(f"audit.file: cannot write {path} (") == 1


def test_a_line_that_is_written_in_part_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write_to = tmp_path / "audit.log", os.write
    log = AuditLog(path, to_standard_error=False)
    rooms = iter([5, 0])  # bytes that still fit

    def filling(descriptor: int, data: bytes) -> int:
        if (room := next(rooms)) == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_to(descriptor, data[:room])

    with monkeypatch.context() as full:
        full.setattr(os, "write", filling)
        write(log, "torn")
    write(log, "whole")
    log.close()
    torn, whole = path.read_text().splitlines()
    assert torn == '{"tim'
    assert json.loads(whole)["run"] == "whole"


def test_what_was_done_is_answered_where_the_file_is_gone(
    start_guarded: Callable[..., Guarded], tmp_path: Path, new_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "audit"
    folder.mkdir()
    file = folder / "audit.log"
    guarded = start_guarded(audit={"file": str(file)})
    owner = calls.bearer(guarded.token("owner"))
    file.unlink()
    folder.rmdir()
    with calls.channel(guarded.target) as opened:
        for name in ("CreateRun", "PushWeights", "DeleteRun"):
            assert calls.answer(opened, name, new_id, owner).code == "OK"
        assert calls.answer(opened, "DeleteRun", new_id, owner).code == "NOT_FOUND"
        assert metrics_of(guarded.service).value("preceptor_audit_failures_total") == 4
        folder.mkdir()
        assert calls.answer(opened, "CreateRun", new_id, owner).code == "OK"
    assert metrics_of(guarded.service).value("preceptor_audit_failures_total") == 4
    assert json.loads(file.read_text())["run"] == new_id
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert caplog.text.count(f"audit.file: cannot write {file} (No such file or directory)") == 1
    assert caplog.text.count(f"audit.file: {file} is written again") == 1


def test_a_file_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"audit\.file: cannot write .*: No such file"):
        AuditLog(tmp_path / "missing" / "audit.log", to_standard_error=False)


def test_reading_a_ledger_is_one_line_however_long_it_is(guarded: Guarded, opened: grpc.Channel, run_id: str) -> None:
    for caller, code in (("scorer", "OK"), ("owner", "OK"), ("pusher", "PERMISSION_DENIED")):
        before = len(guarded.audit_lines())
        assert calls.answer(opened, "ReadLedger", run_id, calls.bearer(guarded.token(caller))).code == code
        (line,) = guarded.audit_lines()[before:]
        assert (line["method"], line["run"], line["identity"], line["code"]) == ("ReadLedger", run_id, caller, code)
