"""What replicas log comes out where an operator looks, whatever standard error is there."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from preceptor_service.process_log import LOG_TO, LogRelay

REPLICA = """
import logging, sys
from preceptor_service.process_log import log_handler, start_logging
start_logging()
start_logging()
audit = logging.getLogger("preceptor.audit")
audit.setLevel(logging.INFO)
audit.addHandler(log_handler())
for _ in range(int(sys.argv[1])):
    logging.getLogger("preceptor_service.gateway").warning("look at this")
    audit.info('{"run": "%s"}', "r" * 1000)
logging.getLogger("somebody.else").warning("not ours")
"""
PARENT = f"""
import os, subprocess, sys
from preceptor_service.process_log import LOG_TO, LogRelay
relay = LogRelay()
replicas = [subprocess.Popen([sys.executable, "-c", {REPLICA!r}, "200"], stderr=subprocess.DEVNULL) for _ in range(3)]
assert [replica.wait(60) for replica in replicas] == [0, 0, 0]
pipe = os.environ[LOG_TO]
relay.stop()
assert not os.path.exists(os.path.dirname(pipe)) and LOG_TO not in os.environ
"""
WARNING = re.compile(r"[\d-]+ [\d:,]+ WARNING preceptor_service\.gateway\[\d+\]: look at this")


@pytest.fixture(autouse=True)
def _no_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test's Ray may still have one."""
    monkeypatch.delenv(LOG_TO, raising=False)


def _run(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def _check(lines: list[str], replicas: int) -> None:
    """Checks that every line of every replica is there, once and whole, and nothing else."""
    audit = '{"run": "' + "r" * 1000 + '"}'
    assert len(lines) == 400 * replicas
    assert lines.count(audit) == 200 * replicas
    assert sum(WARNING.fullmatch(line) is not None for line in lines) == 200 * replicas


def test_a_relay_passes_on_every_line_even_where_standard_error_is_a_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen([sys.executable, "-c", PARENT], stderr=theirs.fileno()) as parent:
        theirs.close()
        with ours.makefile("r") as reader:
            lines = reader.read().splitlines()
        assert parent.wait(60) == 0, lines[-20:]
    _check(lines, replicas=3)


def test_lines_are_appended_to_the_file_that_is_named_and_nowhere_else(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")

    said = _run(REPLICA, "200", **{LOG_TO: str(log)})

    first, *lines = log.read_text().splitlines()
    assert first == "before"
    _check(lines, replicas=1)
    assert said.stderr == "not ours\n"


def test_without_a_file_or_where_it_cannot_be_written_lines_stay_on_standard_error(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "log"

    plain, astray = _run(REPLICA, "1"), _run(REPLICA, "1", **{LOG_TO: str(missing)})

    assert plain.stderr.startswith("look at this\n{")
    assert f"{LOG_TO}: cannot write {missing} (No such file or directory); the log stays here" in astray.stderr
    assert re.search(r"WARNING preceptor_service\.gateway\[\d+\]: look at this\n\{", astray.stderr)


def test_replicas_need_not_wait_where_nobody_reads_standard_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    kept = os.dup(2)
    try:
        os.dup2(writer, 2)
        relay = LogRelay()
        _run(REPLICA, "200", **{LOG_TO: os.environ[LOG_TO]})
        relay.stop()
    finally:
        os.dup2(kept, 2)
        for descriptor in (kept, writer):
            os.close(descriptor)
