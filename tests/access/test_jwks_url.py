"""Keys from a real https server: its certificate counts, redirects do not."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest

from preceptor_service.access.oidc import fetch_https
from tests.access.certificates import Authority

AUTHORITY = Authority()


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/keys")
            self.end_headers()
            return
        content = b"x" * (2**20 + 1) if self.path == "/large" else b"keys"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    pair = AUTHORITY.issue("issuer")
    (tmp_path / "crt").write_bytes(pair.certificate)
    (tmp_path / "key").write_bytes(pair.private_key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://localhost:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def trusting() -> Callable[[Authority], ssl.SSLContext]:
    return lambda authority: ssl.create_default_context(cadata=authority.pem.decode())


def test_keys_come_from_a_server_that_proves_who_it_is(
    site: str, trusting: Callable[[Authority], ssl.SSLContext]
) -> None:
    assert fetch_https(f"{site}/keys", trusting(AUTHORITY)) == b"keys"
    with pytest.raises(URLError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch_https(f"{site}/keys", trusting(Authority()))


def test_redirects_and_endless_answers_are_refused(site: str, trusting: Callable[[Authority], ssl.SSLContext]) -> None:
    with pytest.raises(HTTPError, match="302") as raised:
        fetch_https(f"{site}/moved", trusting(AUTHORITY))
    raised.value.close()
    with pytest.raises(OSError, match="more than"):
        fetch_https(f"{site}/large", trusting(AUTHORITY))
