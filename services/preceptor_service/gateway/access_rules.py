"""What each rpc of the contract asks of its caller. An rpc without a rule is denied to everybody."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from preceptor.quoting import shortened
from preceptor.wire import SERVICES
from preceptor_service.access.caller import Role

_SELECTION, _WEIGHTS, _LEDGER, _BANK = (service.full_name for service in SERVICES)


@dataclass(frozen=True)
class Rule:
    """What one rpc asks for.

    Attributes:
        role: on the run that the first message names; None: to be known is enough, the answer is filtered.
        run_id: from the first message to the run.
        opening: the field that the first message of a stream must have set.
        digest: from request and answer to the digest for the audit log; given: the rpc is audited.
    """

    role: Role | None
    run_id: Callable[[Any], str]
    opening: str | None = None
    digest: Callable[[Any, Any], str | None] | None = None


RULES: Mapping[str, Rule] = {
    f"/{_SELECTION}/CreateRun": Rule(
        "create",
        lambda request: str(request.spec.run_id),
        digest=lambda request, _: shortened(request.spec.reference_digest) or None if request else None,
    ),
    f"/{_SELECTION}/GetRun": Rule("score", lambda request: str(request.run_id)),
    f"/{_SELECTION}/ListRuns": Rule(None, lambda _: ""),
    f"/{_SELECTION}/DeleteRun": Rule("admin", lambda request: str(request.run_id), digest=lambda *_: None),
    f"/{_SELECTION}/Select": Rule("score", lambda first: str(first.open.run_id), opening="open"),
    f"/{_SELECTION}/Score": Rule("score", lambda first: str(first.header.run_id), opening="header"),
    f"/{_SELECTION}/ReportMetrics": Rule("score", lambda request: str(request.run_id)),
    f"/{_SELECTION}/ListMetrics": Rule("score", lambda request: str(request.run_id)),
    f"/{_WEIGHTS}/PushWeights": Rule(
        "push",
        lambda first: str(first.header.run_id),
        opening="header",
        digest=lambda _, response: str(response.version.digest) if response else None,
    ),
    f"/{_WEIGHTS}/GetWeights": Rule("score", lambda request: str(request.run_id)),
    # Audited: who reads a ledger takes away what every trainer of the run offered.
    f"/{_LEDGER}/ReadLedger": Rule("score", lambda request: str(request.run_id), digest=lambda *_: None),
    f"/{_BANK}/Remember": Rule("score", lambda first: str(first.header.run_id), opening="header"),
    f"/{_BANK}/SampleBank": Rule("score", lambda request: str(request.run_id)),
}
