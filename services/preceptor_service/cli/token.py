"""`preceptor token`: a token for a trainer, and the line that makes the service know it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from preceptor_service.access.access_file import TokenIdentity, new_token, token_hash


def token(
    identity: Annotated[str, typer.Option(help="Whose token it is, as the grants in the access file name it.")],
) -> None:
    """Make a bearer token: the token goes to standard output, the line for the access file to standard error."""
    try:
        TypeAdapter(TokenIdentity).validate_python(identity)
    except ValidationError as error:
        raise typer.BadParameter(
            "give 1 to 128 letters, digits, '.', '_', '@', '/' and '-', a letter or digit first",
            param_hint="--identity",
        ) from error
    made = new_token()
    sys.stdout.write(f"{made}\n")
    sys.stderr.write(f"{entry(made, identity)}\n")


def entry(made: str, identity: str) -> str:
    """Returns the line under `tokens:` of the access file; the token cannot be found from it."""
    return f"  {token_hash(made)}: {{identity: {identity}}}"
