"""Options of the commands that talk to a gateway: where it is, whom to trust, who asks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from preceptor import SelectionClient, Tls
from preceptor_service.config import ConfigError

Target = Annotated[str, typer.Option("--target", "-t", help="Gateway to ask, host:port.", envvar="PRECEPTOR_TARGET")]
UsesTls = Annotated[bool, typer.Option("--tls", help="Use TLS with gRPC's own authorities.", envvar="PRECEPTOR_TLS")]
TlsCa = Annotated[
    Path | None, typer.Option(help="PEM file of authorities to trust; implies --tls.", envvar="PRECEPTOR_TLS_CA")
]
TlsCertificate = Annotated[
    Path | None, typer.Option(help="PEM file of our certificate, for mTLS.", envvar="PRECEPTOR_TLS_CERTIFICATE")
]
TlsKey = Annotated[Path | None, typer.Option(help="PEM file of its key.", envvar="PRECEPTOR_TLS_KEY")]
TlsName = Annotated[
    str | None,
    typer.Option(help="Name in the gateway's certificate, where the target has another.", envvar="PRECEPTOR_TLS_NAME"),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        help="File with our bearer token; without it PRECEPTOR_TOKEN counts. There is no option for the token itself: "
        "everybody on a machine can read the arguments of its processes.",
        envvar="PRECEPTOR_TOKEN_FILE",
    ),
]


def open_client(
    target: str,
    uses_tls: bool,
    tls_ca: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    token_file: Path | None = None,
    tls_name: str | None = None,
) -> SelectionClient:
    """Returns a client of the gateway at `target`.

    Raises:
        ConfigError: a file cannot be read, or the settings do not fit together.
    """
    tls = None
    try:
        if uses_tls or tls_ca or tls_certificate or tls_key or tls_name:
            tls = Tls(
                root_certificates=_read(tls_ca),
                private_key=_read(tls_key),
                certificate_chain=_read(tls_certificate),
                server_name=tls_name,
            )
        if token_file is not None:
            token = token_file.read_text().strip()
        else:
            token = os.environ.get("PRECEPTOR_TOKEN", "").strip()
        return SelectionClient(target, token=token or None, tls=tls)
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
