"""Who may call what of the services that `Guarded` starts: the one table of it."""

from __future__ import annotations

SCORER = {
    *("GetRun", "ListRuns", "Select", "Score", "GetWeights", "ReadLedger"),
    *("Remember", "SampleBank", "ReportMetrics", "ListMetrics"),
}
EVERY = {*SCORER, "CreateRun", "DeleteRun", "PushWeights"}
ALLOWED: dict[str, set[str]] = {
    "owner": EVERY,
    "admin": EVERY,
    "scorer": SCORER,
    "oidc scorer": SCORER,
    "pusher": {"ListRuns", "PushWeights"},
    "creator": {"ListRuns", "CreateRun"},
    "elsewhere": {"ListRuns"},
    "stranger": {"ListRuns"},
    "oidc stranger": {"ListRuns"},
    "oidc owner by name": {"ListRuns"},
}
"""What each caller may do to a run of `owner`."""

UNKNOWN = [
    "nobody",
    "unknown",
    "garbage",
    "late",
    "oidc expired",
    "oidc not yet",
    "oidc wrong audience",
    "oidc wrong issuer",
    "oidc alg none",
    "oidc HS256",
    "oidc unknown kid",
    "oidc another key",
]
"""Callers that show nothing valid."""
