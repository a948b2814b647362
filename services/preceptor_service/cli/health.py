"""`preceptor health`: whether a gateway serves, for probes. Kubernetes' own gRPC probe speaks no TLS."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from preceptor import PreceptorError
from preceptor_service.cli.connection import Target, TlsCa, TlsCertificate, TlsKey, TlsName, UsesTls, open_client
from preceptor_service.config import ConfigError


def health(
    target: Target = "localhost:7600",
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for the answer.")] = 5.0,
    tls: UsesTls = False,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    tls_name: TlsName = None,
) -> None:
    """Ask a gateway for its health: status 0 where it serves, 1 where it drains or does not answer. Needs no token."""
    try:
        with open_client(target, tls, tls_ca, tls_certificate, tls_key, tls_name=tls_name) as client:
            serves = client.is_serving(timeout_s)
    except (ConfigError, PreceptorError, ValueError) as error:
        sys.stderr.write(f"preceptor: {error}\n")
        raise typer.Exit(1) from error
    sys.stdout.write("serving\n" if serves else "not serving\n")
    raise typer.Exit(0 if serves else 1)
