"""A real S3 server on this machine, whose requests a test can spoil and whose objects it can let grow older."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from datetime import timedelta
from types import TracebackType
from typing import Any, NamedTuple

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import make_server


class Answer(NamedTuple):
    """An error in place of what the server says, for a request that is done nevertheless where `is_done`."""

    status: str
    code: str
    is_done: bool = False


_ACCOUNT = "123456789012"


class S3Server:
    """Serves S3 on a port of this machine, on threads of its own, until closed.

    moto answers, one request at a time: it looks whether an object exists and writes it in two steps.

    Attributes:
        spoil: asked for each request; it may change the request, and answers an error or None.
    """

    def __init__(self) -> None:
        self.spoil: Callable[[dict[str, Any]], Answer | None] = lambda environ: None
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._turn = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=MotoRequestHandler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.port: int = self._server.server_port

    @property
    def environment(self) -> dict[str, str]:
        """What clients have to find in their environment."""
        return {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.port}",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, bucket: str) -> None:
        """Makes an empty bucket."""
        self._backend.create_bucket(bucket, "us-east-1")

    def keys(self, bucket: str) -> list[str]:
        """The keys of all objects, sorted."""
        return sorted(self._backend.get_bucket(bucket).keys)

    def write(self, bucket: str, key: str, content: bytes) -> None:
        """Writes an object."""
        self._backend.put_object(bucket, key, content)

    def age(self, bucket: str, seconds: float) -> None:
        """Lets that time pass for every object."""
        for key in self._backend.get_bucket(bucket).keys.values():
            key.last_modified -= timedelta(seconds=seconds)

    def __enter__(self) -> S3Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    @property
    def _backend(self) -> Any:
        return s3_backends[_ACCOUNT]["aws"]

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        refusal = self.spoil(environ)
        if refusal is None:
            with self._turn:
                return list(self._moto(environ, start_response))
        if refusal.is_done:
            with self._turn:
                list(self._moto(environ, lambda status, headers, error=None: None))
        else:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = f"<Error><Code>{refusal.code}</Code><Message>spoilt by the test</Message></Error>".encode()
        start_response(refusal.status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]
