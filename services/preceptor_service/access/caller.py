"""`Caller`: one identity and what it may do to which runs. Pure; used by the gateway and the run registry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

Role: TypeAlias = Literal["create", "score", "push", "admin"]
"""What a grant names. `admin` of a run includes the others; `create` is about names of runs to come."""


@dataclass(frozen=True)
class Grants:
    """Roles by patterns of run ids, in which `*` stands for any characters; nothing else is allowed."""

    patterns: Mapping[Role, tuple[str, ...]]

    @staticmethod
    def union(several: Iterable[Grants]) -> Grants:
        """Returns what any of `several` allows."""
        merged: dict[Role, tuple[str, ...]] = {}
        for grants in several:
            for role, patterns in grants.patterns.items():
                merged[role] = (*merged.get(role, ()), *patterns)
        return Grants(merged)

    def allow(self, role: Role, run_id: str) -> bool:
        """Tells whether `role` is granted on a run of that name."""
        patterns = (*self.patterns.get(role, ()), *self.patterns.get("admin", ()))
        return any(fnmatchcase(run_id, pattern) for pattern in patterns)


@dataclass(frozen=True)
class Caller:
    """Whoever makes one call.

    Attributes:
        identity: unique name: that of a token's owner, `cert:` and a certificate's name, or `oidc:` and a subject;
            None where the service knows no callers.
        grants: None where the service restricts nobody.
        expires_at: when the credentials end, in seconds since the epoch.
    """

    identity: str | None
    grants: Grants | None
    expires_at: float = math.inf

    def may(self, role: Role, run_id: str, owner: str | None) -> bool:
        """Tells whether the caller has `role` on the run of that name, which `owner` created.

        A creator has every role on its own runs; everybody else needs a grant.
        """
        if self.grants is None:
            return True
        return (owner is not None and owner == self.identity) or self.grants.allow(role, run_id)

    @property
    def is_admin_of_all(self) -> bool:
        """Whether the caller has every role on every run."""
        return self.grants is None or "*" in self.grants.patterns.get("admin", ())


UNRESTRICTED = Caller(None, None)
"""The caller of a service that asks nobody who they are."""

NOBODY = Caller(None, Grants({}))
"""May do nothing; stands where no call was authorised."""

current_caller: ContextVar[Caller] = ContextVar("current_caller", default=NOBODY)
"""The caller of the rpc that this task serves; set by the gateway's guard alone."""
