"""Bytes below gRPC's messages: HTTP/2 that no client library would send."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from preceptor import SelectionClient
from preceptor_service.app import RunningService
from tests.reliability import http2
from tests.service import digits
from tests.service.conftest import target_of, wait_until
from tests.service.raw import METHODS, RawChannel, select_open, super_batch

_GET_RUN = METHODS["GetRun"]


def _send(service: RunningService, sent: list[http2.Frame]) -> str:
    whole = http2.PREFACE + b"".join(frame.encode() for frame in sent)
    return asyncio.run(http2.outcome(service.ports.grpc, whole, timeout_s=5.0)).code


@pytest.mark.parametrize("path", [b"/preceptor.v1.SelectionService/\xff", b"\xff\xfe", b"/\x80/GetRun"])
def test_a_path_that_is_not_text_ends_nobody_elses_calls(start: Callable[..., RunningService], path: bytes) -> None:
    service = start()
    with SelectionClient(target_of(service), timeout_s=20.0) as client, RawChannel(target_of(service)) as raw:
        client.create_run(digits.spec("run", score="uniform"))
        stream = raw.call("Select", select_open("run"), *super_batch(digits.candidates(1), step=1))
        assert stream.answer().WhichOneof("kind") == "selection"
        whole = http2.END_HEADERS | http2.END_STREAM
        headers = [(name, path if name == b":path" else value) for name, value in http2.headers_of(_GET_RUN.path)]
        for _ in range(3):
            _send(service, [http2.Frame(http2.SETTINGS), http2.Frame(http2.HEADERS, whole, 1, http2.literal(headers))])
            wait_until(
                lambda: _send(service, http2.call(_GET_RUN.path, [b""])) == "NOT_FOUND", "new connections are answered"
            )
        stream.send(*super_batch(digits.candidates(2), step=2))
        assert stream.answer().WhichOneof("kind") == "selection"
        stream.half_close()
        assert stream.status().code == "OK"
        assert client.get_run("run").status().super_batches == 2


@pytest.mark.parametrize("content", [gzip.compress(bytes(1000)), b"not gzip"], ids=["gzip", "noise"])
def test_a_compressed_message_is_refused_as_such(service: RunningService, content: bytes) -> None:
    headers = [*http2.headers_of(_GET_RUN.path), (b"grpc-encoding", b"gzip")]
    message = b"\x01" + len(content).to_bytes(4, "big") + content
    sent = [
        http2.Frame(http2.SETTINGS),
        http2.Frame(http2.HEADERS, http2.END_HEADERS, 1, http2.literal(headers)),
        http2.Frame(http2.DATA, http2.END_STREAM, 1, message),
    ]
    assert _send(service, sent) == "UNIMPLEMENTED"


def test_what_a_stranger_sends_is_not_logged(tmp_path: Path, repository: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    environment["PYTHONPATH"] = os.pathsep.join([str(repository), *filter(None, sys.path)])
    options = ["--host", "127.0.0.1", "--port", str(port), "--metrics-port", "0", "--store", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-m", "preceptor_service", "serve", "--pool", "in-process", *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            headers = http2.literal([*http2.headers_of("/a/b"), (b"te", b"secret"), (b"grpc-timeout", b"secret")])
            goodbye = http2.Frame(http2.GOAWAY, 0, 0, bytes(8) + b"secret")
            for frame in (http2.Frame(http2.HEADERS, http2.END_HEADERS, 1, headers), goodbye):
                sent = http2.PREFACE + http2.Frame(http2.SETTINGS).encode() + frame.encode()
                wait_until(partial(_heard, port, sent), "the service listens", timeout_s=60.0)
        finally:
            process.terminate()
        printed = process.communicate(timeout=60)[0]
    assert str(port) in printed
    for sign in ("secret", "Error parsing", "goaway"):
        assert sign not in printed


def _heard(port: int, sent: bytes) -> bool:
    return asyncio.run(http2.outcome(port, sent, timeout_s=1.0)).code != "refused"


def test_a_broken_connection_is_closed(service: RunningService) -> None:
    assert _send(service, [http2.Frame(http2.CONTINUATION, http2.END_HEADERS, 1, b"")]) == "closed"
