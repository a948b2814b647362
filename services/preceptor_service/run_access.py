"""Whether a caller may do something to a run: its roles, its own runs, its limits. Called by the gateway's guard."""

from __future__ import annotations

from preceptor.errors import (
    InternalError,
    OverloadedError,
    PermissionDeniedError,
    RunNotFoundError,
    UnavailableError,
)
from preceptor.quoting import quoted
from preceptor_service.access.caller import Caller, Role
from preceptor_service.run_store import RunStore
from preceptor_service.spec_checks import RUN_ID
from preceptor_service.weight_store import WeightStore, weights_not_found

_OWNERS = 10_000
"""Runs whose owners are kept in mind."""


class RunAccess:
    """Reads the stores afresh each time, so that no other gateway's deletion or creation is missed. Blocking.

    Where the store does not tell, the owner that it told last counts: it does not change while a run lives.

    Args:
        run_store: knows who created which run.
        weight_store: knows which run holds which weights.
        max_runs_per_identity: runs of one creator at once.
    """

    def __init__(self, run_store: RunStore, weight_store: WeightStore, max_runs_per_identity: int) -> None:
        self._run_store = run_store
        self._weight_store = weight_store
        self._max_runs = max_runs_per_identity
        self._owners: dict[str, str | None] = {}

    def check(self, caller: Caller, role: Role, run_id: str, is_afresh: bool = True) -> None:
        """Returns where the caller has `role` on the run; the answer does not tell whether there is such a run.

        Who may create runs of that name passes also where there is none, to be told so. Unless `is_afresh` it does not
        look into the store, and does not block.

        Raises:
            PermissionDeniedError: it has not.
            UnavailableError: the store does not tell, and never did.
        """
        if caller.grants is None:
            return
        exists, owner = self._owner(run_id) if is_afresh else (True, self._last_owner(run_id))
        if caller.may(role, run_id, owner) or (not exists and caller.may("create", run_id, None)):
            return
        raise PermissionDeniedError(
            f"{caller.identity} has no role {role!r} on run {quoted(run_id)}; its creator has it, "
            "to others the operator grants it in the access file"
        )

    def check_creation(self, caller: Caller, run_id: str, reference_digest: str | None) -> None:
        """Returns where the caller may create the run, or may score the one that is there.

        Raises:
            PermissionDeniedError: runs of that name are not for this caller.
            OverloadedError: the caller has too many runs.
            WeightsNotFoundError: no run that the caller may score holds the reference.
        """
        if caller.grants is None:
            return
        exists, owner = self._owner(run_id)
        if exists and not caller.may("score", run_id, owner):
            raise PermissionDeniedError(f"run {quoted(run_id)} belongs to somebody else; choose another run_id")
        if not exists:
            self._check_new(caller, run_id)
        if reference_digest is not None and not caller.is_admin_of_all:
            self._weight_store.require(reference_digest)
            if not self._is_in_sight(caller, reference_digest):
                raise weights_not_found(reference_digest)

    def _check_new(self, caller: Caller, run_id: str) -> None:
        if not caller.may("create", run_id, None):
            raise PermissionDeniedError(
                f"{caller.identity} may not create run {quoted(run_id)}; "
                "the operator grants the role 'create' on patterns of run ids in the access file"
            )
        owned = sum(record.owner == caller.identity for record in self._run_store.records())
        if owned >= self._max_runs:
            raise OverloadedError(
                f"{caller.identity} has {owned} runs, as many as limits.max_runs_per_identity allows; "
                "delete some first",
                limit="limits.max_runs_per_identity",
            )

    def _is_in_sight(self, caller: Caller, digest: str) -> bool:
        records = self._run_store.records()
        seen = {record.spec.run_id for record in records if caller.may("score", record.spec.run_id, record.owner)}
        return self._weight_store.is_held(digest, seen)

    def _owner(self, run_id: str) -> tuple[bool, str | None]:
        """Returns whether there is such a run, and its creator where one is known."""
        if not RUN_ID.fullmatch(run_id):
            return False, None
        try:
            owner = self._run_store.read(run_id).owner
        except RunNotFoundError:
            self._owners.pop(run_id, None)
            return False, None
        except InternalError:  # damaged
            return True, self._owners.get(run_id)
        except UnavailableError:
            return True, self._last_owner(run_id)
        if len(self._owners) >= _OWNERS:
            self._owners.clear()
        self._owners[run_id] = owner
        return True, owner

    def _last_owner(self, run_id: str) -> str | None:
        if run_id not in self._owners:
            raise UnavailableError("the store does not tell whose run it is; try again")
        return self._owners[run_id]
