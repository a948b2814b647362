"""`preceptor health`: whether a gateway serves, for probes. Kubernetes' own gRPC probe speaks no TLS."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from preceptor_service.cli.connection import Gateway, asks_gateway


@asks_gateway
def health(
    gateway: Gateway,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for the answer.")] = 5.0,
) -> None:
    """Ask a gateway for its health: status 0 where it serves, 1 where it drains or does not answer. Needs no token."""
    with gateway.client() as client:
        serves = client.is_serving(timeout_s)
    sys.stdout.write("serving\n" if serves else "not serving\n")
    raise typer.Exit(0 if serves else 1)
