"""`preceptor delete`: one run that ended, with all that the service keeps of it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from preceptor import SelectionClient
from preceptor.errors import InternalError
from preceptor_service.cli.connection import Gateway, asks_gateway
from preceptor_service.cli.failing import failed
from preceptor_service.cli.look import moment


@asks_gateway
def delete(
    gateway: Gateway,
    run: Annotated[str, typer.Argument(help="The run.")],
    is_sure: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a run, its weights and its ledger. A trainer that still uses it fails."""
    with gateway.connect() as client:
        if not (is_sure or _confirms(f"{_told(client, run)}; delete it from {gateway.target}?")):
            raise failed("nothing was deleted; give --yes where nobody can answer")
        client.delete_run(run)
    sys.stdout.write(f"deleted run {run}, its weights and its ledger\n")


def _confirms(question: str) -> bool:
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        sys.stderr.write("\n")
        return False


def _told(client: SelectionClient, run_id: str) -> str:
    try:
        run = client.get_run(run_id).status()
    except InternalError:  # to be deleted all the same
        return f"the record of run {run_id} is damaged"
    owner = "" if run.owner is None else f" by {run.owner}"
    answered = moment(run.last_answer_time_s)
    used = f"last answered {answered}" if answered else "not answered by this gateway since it started"
    return f"run {run_id} was created {moment(run.create_time_s)}{owner}, {used}"
