"""What the commands that talk to a gateway share: where it is, whom to trust, who asks, and what its errors mean."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_type_hints

import typer

from preceptor import PreceptorError, SelectionClient, Tls
from preceptor.errors import UnauthenticatedError, UnavailableError
from preceptor_service.cli.failing import failed, file_problem
from preceptor_service.config import ConfigError

_TOKEN = "PRECEPTOR_TOKEN"  # noqa: S105 - the name of a variable


@dataclass(frozen=True)
class Gateway:
    """A gateway as the options name it: each field is an option, and an environment variable, of every such command."""

    target: Annotated[
        str, typer.Option("--target", "-t", help="Gateway to ask, host:port.", envvar="PRECEPTOR_TARGET")
    ] = "localhost:7600"
    tls: Annotated[bool, typer.Option("--tls", help="Use TLS with gRPC's own authorities.", envvar="PRECEPTOR_TLS")] = (
        False
    )
    tls_ca: Annotated[
        Path | None, typer.Option(help="PEM file of authorities to trust; implies --tls.", envvar="PRECEPTOR_TLS_CA")
    ] = None
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM file of our certificate, for mTLS.", envvar="PRECEPTOR_TLS_CERTIFICATE")
    ] = None
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its key.", envvar="PRECEPTOR_TLS_KEY")] = None
    tls_name: Annotated[
        str | None,
        typer.Option(
            help="Name in the gateway's certificate, where the target has another.", envvar="PRECEPTOR_TLS_NAME"
        ),
    ] = None
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with our bearer token; without it PRECEPTOR_TOKEN counts. There is no option for the token "
            "itself: everybody on a machine can read the arguments of its processes.",
            envvar="PRECEPTOR_TOKEN_FILE",
        ),
    ] = None

    @property
    def uses_tls(self) -> bool:
        """Whether any option asks for TLS."""
        return self.tls or any((self.tls_ca, self.tls_certificate, self.tls_key, self.tls_name))

    @property
    def has_token(self) -> bool:
        """Whether a token is given, in a file or by the environment."""
        return self.token_file is not None or bool(os.environ.get(_TOKEN, "").strip())

    def connect(self) -> SelectionClient:
        """Returns a client of a gateway that answers.

        Raises:
            ConfigError: a file cannot be read, or the options do not fit together.
            UnavailableError: nobody answers: said at once, where a trainer's client would try again for a while.
        """
        client = self.client(self._token())
        try:
            client.is_serving()
        except PreceptorError:
            client.close()
            raise
        return client

    def client(self, token: str | None = None) -> SelectionClient:
        """Returns a client of the gateway, whether it answers or not; raises `ConfigError` as `connect`."""
        try:
            return SelectionClient(self.target, token=token, tls=self._tls())
        except OSError as error:
            raise ConfigError(file_problem(error)) from error

    def explained(self, error: Exception) -> str:
        """Returns what an error of the gateway, or on the way to it, means for whoever gave the options."""
        told = file_problem(error, "use") if isinstance(error, OSError) else str(error)
        match error:
            case UnauthenticatedError() if not self.has_token:
                return f"{self.target} asks who calls; give --token-file FILE, or set {_TOKEN} ({told})"
            case ValueError() if "would travel unencrypted" in told:
                return f"a token for {self.target} would travel unencrypted; give --tls-ca FILE, or --tls"
            case UnavailableError() if "Hostname Verification Check failed" in told:
                return f"the certificate of {self.target} bears another name; give that by --tls-name ({told})"
            case UnavailableError() if "CERTIFICATE_VERIFY_FAILED" in told:
                return (
                    f"the certificate of {self.target} is of no authority that we trust, or has ended; give its "
                    f"authority by --tls-ca FILE ({told})"
                )
            case UnavailableError() if "WRONG_VERSION_NUMBER" in told:
                return f"{self.target} speaks no TLS; leave out the options that ask for it ({told})"
            case UnavailableError() if not self.uses_tls and "Socket closed" in told:
                return f"{self.target} hangs up; if it speaks TLS, give --tls-ca FILE, or --tls ({told})"
            case UnavailableError():
                return (
                    f"no service answers at {self.target}; start one with 'preceptor serve', "
                    f"or name another with --target ({told})"
                )
        return told

    def _token(self) -> str | None:
        if self.token_file is not None:
            try:
                return self.token_file.read_text().strip() or None
            except OSError as error:
                raise ConfigError(file_problem(error)) from error
        return os.environ.get(_TOKEN, "").strip() or None

    def _tls(self) -> Tls | None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, missing = ("--tls-certificate", "--tls-key")[:: -1 if self.tls_certificate is None else 1]
            raise ConfigError(f"{given} is given without {missing}; give both")
        if not self.uses_tls:
            return None
        return Tls(
            root_certificates=_read(self.tls_ca),
            private_key=_read(self.tls_key),
            certificate_chain=_read(self.tls_certificate),
            server_name=self.tls_name,
        )


def asks_gateway(command: Callable[..., None]) -> Callable[..., None]:
    """Returns `command` for Typer: its parameter `gateway` becomes the options, and its errors end in `failed`."""
    signature, hints = inspect.signature(command), get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in signature.parameters.items()
        if name != "gateway"
    ]
    options = _options()

    @functools.wraps(command)
    def asked(**given: object) -> None:
        gateway = Gateway(**{option.name: given.pop(option.name) for option in options})  # type: ignore[arg-type]
        try:
            command(gateway=gateway, **given)
        except (ConfigError, PreceptorError, ValueError, OSError) as error:
            raise failed(gateway.explained(error)) from error

    # What Typer reads.
    asked.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    asked.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *options]}
    return asked


def _options() -> list[inspect.Parameter]:
    hints = get_type_hints(Gateway, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in dataclasses.fields(Gateway)
    ]


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
