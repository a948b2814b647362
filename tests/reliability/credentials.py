"""The proof `credentials`: every rpc with every kind of credentials, and which ports of a service answer strangers."""

from __future__ import annotations

import io
import itertools
import logging
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from benchmarks.results import Figure
from benchmarks.suite import Measured
from preceptor.wire import methods
from preceptor_service.gateway.access_rules import RULES
from tests.access import calls
from tests.access.certificates import Authority, Pair
from tests.access.conftest import Guarded
from tests.access.expected import ALLOWED, EVERY, UNKNOWN
from tests.cluster.hosts import can_make_hosts
from tests.reliability.ports import answering_ports

_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]


@dataclass
class Cells:
    """The cells of the table: caller and rpc."""

    count: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, caller: str, rpc: str, wanted: str, found: str) -> None:
        self.count += 1
        if wanted != found:
            self.wrong.append(f"{rpc} by {caller}: {found}, not {wanted}")


def run(short: bool) -> Measured:
    """Fills the table; the whole form also looks at the ports of a service on Ray."""
    cells = Cells()
    with tempfile.TemporaryDirectory() as folder, _listening_to_logs() as logs:
        shown = _fill(Path(folder), cells)
        shown += sum(token in logs.getvalue() for token in _secrets)
    known, paths = {method.name for method in methods()}, {method.path for method in methods()}
    pools = ("in-process",) if short else ("in-process", "ray")
    ports = {pool: answering_ports(pool) for pool in pools} if can_make_hosts() else {}
    right = 100 * (1 - len(cells.wrong) / cells.count)
    figures = [
        Figure("expected codes, of every rpc × credentials", right, "%", 100, "at least"),
        Figure("rpc × credentials", cells.count, ""),
        Figure("rpcs without a row or a rule", len(known ^ EVERY) + len(paths ^ set(RULES)), "", 0),
        Figure("tokens found in logs and in the audit log", shown, "", 0),
    ]
    for pool, found in ports.items():
        figures += [
            Figure(f"{pool}: ports that listen", len(found.listening), ""),
            Figure(f"{pool}: others that answer another host", len(found.unwanted), "", 0),
            Figure(f"{pool}: gateway and metrics answer it", len(found.wanted & found.answering), "", 2, "at least"),
        ]
    return figures, {"wrong": cells.wrong, "ports": {pool: found.raw() for pool, found in ports.items()}}


_secrets: list[str] = []


@contextmanager
def _listening_to_logs() -> Iterator[io.StringIO]:
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logging.getLogger().addHandler(handler)
    try:
        yield text
    finally:
        logging.getLogger().removeHandler(handler)


def _fill(folder: Path, cells: Cells) -> int:
    """Returns how many tokens the audit logs hold."""
    authority, another = Authority(), Authority("another")
    pair = authority.issue()
    files = {"certificate": pair.certificate, "private_key": pair.private_key, "client_ca": authority.pem}
    paths = {name: folder / f"{name}.pem" for name in files}
    for name, content in files.items():
        paths[name].write_bytes(content)
    tls = {name: str(path) for name, path in paths.items()}
    shown = 0
    for client_ca in (False, True):
        settings = tls if client_ca else {name: path for name, path in tls.items() if name != "client_ca"}
        guarded = Guarded(folder / f"mutual-{client_ca}", tls=settings)
        try:
            if client_ca:
                _by_certificate(guarded, authority, another, cells)
            else:
                _by_token(guarded, authority, another, cells)
        finally:
            guarded.service.stop()
        shown += sum(token in guarded.audit.read_text() for token in guarded.access.tokens.values())
        _secrets.extend(guarded.access.tokens.values())
    return shown


def _by_token(guarded: Guarded, authority: Authority, another: Authority, cells: Cells) -> None:
    with calls.channel(guarded.target, authority.pem) as opened:
        table = _Table(guarded, opened, cells)
        for caller, allowed in ALLOWED.items():
            table.row(caller, guarded.token(caller), {name: _wanted(name, allowed) for name in EVERY})
        for caller in UNKNOWN:
            table.row(caller, guarded.token(caller), dict.fromkeys(EVERY, "UNAUTHENTICATED"))
        for caller in ("another authority's server", "plaintext"):
            ca = another.pem if caller.startswith("another") else None
            with calls.channel(guarded.target, ca) as closed:
                table.row(caller, guarded.token("admin"), dict.fromkeys(EVERY, "UNAVAILABLE"), closed)


def _by_certificate(guarded: Guarded, authority: Authority, another: Authority, cells: Cells) -> None:
    right = authority.issue("trainer", dns=None, uri="spiffe://example/trainer")
    callers: dict[str, tuple[Pair | None, str | None, dict[str, str]]] = {
        "no certificate": (None, "admin", dict.fromkeys(EVERY, "UNAVAILABLE")),
        "a certificate of another authority": (another.issue("trainer"), "admin", dict.fromkeys(EVERY, "UNAVAILABLE")),
        "an expired certificate": (authority.issue("t", days=-1), "admin", dict.fromkeys(EVERY, "UNAVAILABLE")),
        "a certificate without grants": (right, None, {name: _wanted(name, {"ListRuns"}) for name in EVERY}),
        "a certificate and an unknown token": (right, "unknown", dict.fromkeys(EVERY, "UNAUTHENTICATED")),
        "a certificate and a scorer's token": (right, "scorer", {n: _wanted(n, ALLOWED["scorer"]) for n in EVERY}),
        "a certificate and an administrator's token": (right, "admin", dict.fromkeys(EVERY, "OK")),
    }
    with calls.channel(guarded.target, authority.pem, right) as opened:
        table = _Table(guarded, opened, cells)
        for caller, (pair, token, wanted) in callers.items():
            with calls.channel(guarded.target, authority.pem, pair) as own:
                table.row(caller, None if token is None else guarded.token(token), wanted, own)


def _wanted(name: str, allowed: set[str]) -> str:
    return "OK" if name in allowed else "PERMISSION_DENIED"


class _Table:
    """Fills rows of one service; `opened` is a connection that is let in."""

    def __init__(self, guarded: Guarded, opened: grpc.Channel, cells: Cells) -> None:
        self._owner = calls.bearer(guarded.token("owner"))
        self._opened = opened
        self._cells = cells
        self._numbers = itertools.count(1)
        self._run_id = self._made()

    def row(self, caller: str, token: str | None, wanted: dict[str, str], own: grpc.Channel | None = None) -> None:
        """Calls every rpc, and those of health, which ask nobody who they are."""
        opened = own or self._opened
        for name, code in wanted.items():
            subject = f"team-new-{next(self._numbers)}" if name == "CreateRun" else self._run_id
            answer = calls.answer(opened, name, subject, calls.bearer(token))
            self._cells.add(caller, name, code, answer.code)
            if code != "OK" and answer.messages:
                self._cells.wrong.append(f"{name} by {caller}: answered something")
            if name == "DeleteRun" and answer.code == "OK":
                self._run_id = self._made()
        transport = "UNAVAILABLE" if set(wanted.values()) == {"UNAVAILABLE"} else "OK"
        for method in _HEALTH.methods:
            self._cells.add(caller, f"Health.{method.name}", transport, _health(opened, method))

    def _made(self) -> str:
        """A run of `owner`, with something in its memory bank."""
        run_id = f"team-a-{next(self._numbers)}"
        for name in ("CreateRun", "Remember"):
            calls.answer(self._opened, name, run_id, self._owner)
        return run_id


def _health(opened: grpc.Channel, method: Any) -> str:
    start = opened.unary_stream if method.server_streaming else opened.unary_unary
    stub = start(f"/{_HEALTH.full_name}/{method.name}")
    with ExitStack() as stack:
        try:
            if not method.server_streaming:
                stub(b"", timeout=calls.TIMEOUT_S)
            else:
                call = stub(b"", timeout=calls.TIMEOUT_S)
                stack.callback(call.cancel)
                next(call)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"
