"""TLS and mTLS on real sockets, with certificates made here."""

from __future__ import annotations

import socket
import ssl
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from preceptor import SelectionClient, Tls
from preceptor.errors import UnavailableError
from preceptor_service.app import RunningService, start_service
from preceptor_service.config import ConfigError
from tests.access import calls
from tests.access.certificates import Authority, Pair
from tests.access.conftest import Guarded, replace
from tests.service import digits
from tests.service.conftest import Metrics, config, wait_until

AUTHORITY = Authority()
STRANGE_AUTHORITY = Authority("stranger")


class Files:
    """The files that the service reads."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.private_key = folder / "tls.crt", folder / "tls.key"
        self.client_ca = folder / "ca.crt"
        self.client_ca.write_bytes(AUTHORITY.pem)
        self.put(AUTHORITY.issue())

    def put(self, pair: Pair) -> None:
        replace(self.certificate, pair.certificate)
        replace(self.private_key, pair.private_key)

    def section(self, *, mutual: bool = False) -> dict[str, str]:
        names = ["certificate", "private_key", *(["client_ca"] if mutual else [])]
        return {name: str(getattr(self, name)) for name in names}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RunningService]]:
    started: list[RunningService] = []

    def start(**sections: Any) -> RunningService:
        started.append(start_service(config(tmp_path / "store", **sections)))
        return started[-1]

    yield start
    for service in started:
        service.stop()


def local(service: RunningService) -> str:
    return f"localhost:{service.ports.grpc}"


def code(service: RunningService, ca: bytes | None, pair: Pair | None = None) -> str:
    with calls.channel(local(service), ca, pair) as opened:
        return calls.answer(opened, "ListRuns", "").code


def served_certificate(service: RunningService) -> bytes:
    """The leaf that a new connection gets."""
    return ssl.get_server_certificate(("127.0.0.1", service.ports.grpc)).encode().strip()


def metrics_of(service: RunningService) -> Metrics:
    return Metrics(f"http://127.0.0.1:{service.ports.metrics}/metrics")


def test_tls_serves_those_who_trust_its_authority_and_nobody_else(
    start: Callable[..., RunningService], files: Files
) -> None:
    service = start(tls=files.section())
    with SelectionClient(local(service), tls=Tls(AUTHORITY.pem), timeout_s=20.0) as client:
        run = client.create_run(digits.spec("secure", score="uniform"))
        assert len(run.select(digits.candidates(1), sub_batch_size=4, step=1).indices) == 4
    assert code(service, STRANGE_AUTHORITY.pem) == "UNAVAILABLE"
    with SelectionClient(local(service), timeout_s=2.0) as plaintext, pytest.raises(UnavailableError):
        plaintext.list_runs()


def test_health_is_answered_over_tls_without_a_token(start_guarded: Callable[..., Guarded], files: Files) -> None:
    guarded = start_guarded(tls=files.section())
    with calls.channel(local(guarded.service), AUTHORITY.pem) as opened:
        stub = health_pb2_grpc.HealthStub(opened)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=20).status == health_pb2.HealthCheckResponse.SERVING
        watched = stub.Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        watched.cancel()
        assert calls.answer(opened, "ListRuns", "").code == "UNAUTHENTICATED"
        assert calls.answer(opened, "ListRuns", "", calls.bearer(guarded.token("admin"))).code == "OK"


def test_a_certificate_that_ended_is_refused_by_clients_until_it_is_replaced(
    start: Callable[..., RunningService], files: Files
) -> None:
    files.put(AUTHORITY.issue(days=-1))
    service = start(tls=files.section())
    assert code(service, AUTHORITY.pem) == "UNAVAILABLE"
    files.put(AUTHORITY.issue())
    wait_until(lambda: code(service, AUTHORITY.pem) == "OK", "the new certificate is served")


def test_mutual_tls_wants_a_certificate_of_the_right_authority(
    start: Callable[..., RunningService], files: Files
) -> None:
    service = start(tls=files.section(mutual=True))
    assert code(service, AUTHORITY.pem) == "UNAVAILABLE"
    assert code(service, AUTHORITY.pem, STRANGE_AUTHORITY.issue("trainer")) == "UNAVAILABLE"
    assert code(service, AUTHORITY.pem, AUTHORITY.issue("trainer", days=-1)) == "UNAVAILABLE"
    assert code(service, AUTHORITY.pem, AUTHORITY.issue("trainer")) == "OK"


def test_a_certificate_is_an_identity_and_a_token_goes_before_it(
    start_guarded: Callable[..., Guarded], files: Files
) -> None:
    guarded = start_guarded(tls=files.section(mutual=True))
    guarded.access.write(
        grants={"cert:spiffe://example/trainer": {"create": ["team-*"]}, "cert:by-name": {"admin": ["*"]}}
    )

    def codes(pair: Pair, run_id: str, token: str | None = None) -> str:
        with calls.channel(local(guarded.service), AUTHORITY.pem, pair) as opened:
            return calls.answer(opened, "CreateRun", run_id, calls.bearer(token)).code

    trainer = AUTHORITY.issue("ignored", uri="spiffe://example/trainer")
    wait_until(lambda: codes(trainer, "team-x") == "OK", "the grants are in use")
    assert codes(trainer, "other-x") == "PERMISSION_DENIED"
    assert codes(AUTHORITY.issue("by-name", dns=None), "other-x") == "OK"
    assert codes(AUTHORITY.issue("by-name", dns="somebody-else"), "other-x") == "PERMISSION_DENIED"
    assert codes(trainer, "team-x", guarded.token("unknown")) == "UNAUTHENTICATED"
    assert codes(trainer, "team-x", guarded.token("stranger")) == "PERMISSION_DENIED"
    identities = {(line["identity"], line["code"]) for line in guarded.audit_lines()}
    assert {("cert:spiffe://example/trainer", "OK"), ("cert:by-name", "OK")} <= identities


def test_without_auth_a_certificate_still_names_the_caller_in_the_audit_log(
    start: Callable[..., RunningService], files: Files, tmp_path: Path
) -> None:
    log = tmp_path / "audit.log"
    service = start(tls=files.section(mutual=True), audit={"file": str(log)})
    with calls.channel(local(service), AUTHORITY.pem, AUTHORITY.issue("trainer", dns=None)) as opened:
        assert calls.answer(opened, "CreateRun", "named").code == "OK"
    assert '"identity": "cert:trainer"' in log.read_text()


def test_a_new_certificate_is_served_to_new_connections_while_open_streams_go_on(
    start: Callable[..., RunningService], files: Files
) -> None:
    service = start(tls=files.section())
    metrics = metrics_of(service)
    with SelectionClient(local(service), tls=Tls(AUTHORITY.pem), timeout_s=20.0) as client:
        run = client.create_run(digits.spec("rotated", score="uniform"))
        run.select(digits.candidates(1), sub_batch_size=4, step=1)
        before = metrics.value("preceptor_certificate_expiry_timestamp_seconds", certificate="gateway")
        replacement = AUTHORITY.issue(days=9)
        files.put(replacement)
        wait_until(lambda: served_certificate(service) == replacement.certificate.strip(), "the new one is served")
        run.select(digits.candidates(2), sub_batch_size=4, step=2)
        assert metrics.value("preceptor_select_streams") == 1
    wait_until(
        lambda: (
            metrics.value("preceptor_certificate_expiry_timestamp_seconds", certificate="gateway")
            == pytest.approx(before + 8 * 86400, abs=60)
        ),
        "the new end is shown",
    )
    assert code(service, AUTHORITY.pem) == "OK"


def test_another_authority_of_clients_counts_for_new_connections(
    start: Callable[..., RunningService], files: Files
) -> None:
    service = start(tls=files.section(mutual=True))
    assert code(service, AUTHORITY.pem, AUTHORITY.issue("trainer")) == "OK"
    replace(files.client_ca, STRANGE_AUTHORITY.pem)
    trainer = STRANGE_AUTHORITY.issue("trainer")
    wait_until(lambda: code(service, AUTHORITY.pem, trainer) == "OK", "the new authority is trusted")
    assert code(service, AUTHORITY.pem, AUTHORITY.issue("trainer")) == "UNAVAILABLE"


_BROKEN: dict[str, Callable[[Files], object]] = {
    "another's key": lambda files: replace(files.private_key, AUTHORITY.issue().private_key),
    "no PEM": lambda files: replace(files.certificate, b"-----BEGIN CERTIFICATE-----\nnonsense\n"),
    "an empty file": lambda files: replace(files.certificate, b""),
    "a certificate that ended": lambda files: files.put(AUTHORITY.issue(days=-1)),
    "no file": lambda files: files.private_key.unlink(),
}


@pytest.mark.parametrize("spoil", _BROKEN.values(), ids=_BROKEN.keys())
def test_files_that_cannot_be_used_leave_the_previous_certificate_and_are_counted(
    start: Callable[..., RunningService],
    files: Files,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Files], object],
) -> None:
    service = start(tls=files.section())
    before, metrics = served_certificate(service), metrics_of(service)
    spoil(files)
    wait_until(
        lambda: metrics.value("preceptor_credential_reload_failures_total", source="certificate") >= 1, "it is counted"
    )
    assert "the previous one stays in use" in caplog.text
    assert served_certificate(service) == before
    assert code(service, AUTHORITY.pem) == "OK"
    replacement = AUTHORITY.issue()
    files.put(replacement)
    wait_until(lambda: served_certificate(service) == replacement.certificate.strip(), "it recovers")


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (_BROKEN["another's key"], "private_key does not belong"),
        (_BROKEN["no PEM"], "tls.certificate is not"),
        (_BROKEN["no file"], "cannot read .*tls.key: No such file"),
    ],
    ids=["another's key", "no PEM", "no file"],
)
def test_a_service_does_not_start_with_files_that_cannot_be_used(
    start: Callable[..., RunningService], files: Files, spoil: Callable[[Files], object], text: str
) -> None:
    spoil(files)
    with pytest.raises(ConfigError, match=text):
        start(tls=files.section())


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_tls_older_than_1_2_is_refused(start: Callable[..., RunningService], files: Files, version: str) -> None:
    service = start(tls=files.section())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)
    address = ("127.0.0.1", service.ports.grpc)
    with socket.create_connection(address, timeout=20) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain)
    assert code(service, AUTHORITY.pem) == "OK"


def test_an_open_listener_beyond_this_machine_says_so(
    start: Callable[..., RunningService], caplog: pytest.LogCaptureFixture
) -> None:
    closed = start()
    assert metrics_of(closed).value("preceptor_insecure") == 0
    assert "anybody who reaches" not in caplog.text
    opened = start(gateway={"host": "0.0.0.0"})
    assert metrics_of(opened).value("preceptor_insecure") == 1
    assert "anybody who reaches 0.0.0.0" in caplog.text
