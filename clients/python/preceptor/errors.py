"""The one error tree, shared by client and service.

Each class carries the canonical gRPC status code and a stable reason. They are looked up at the two
edges only: the gateway writes them (`preceptor_service.gateway.status`), the client reads them with
`error_from`. No `grpc.RpcError` reaches a user.
"""

from __future__ import annotations

from typing import ClassVar

REASON_METADATA_KEY = "preceptor-reason"
"""Trailing metadata key that carries `PreceptorError.reason` beside the status code."""

RETRY_AFTER_METADATA_KEY = "preceptor-retry-after-ms"
"""Trailing metadata key that carries `OverloadedError.retry_after_s`, in whole milliseconds."""


class PreceptorError(Exception):
    """Root of every error that the client raises for something the service or the network said."""

    code: ClassVar[str] = "UNKNOWN"
    """Canonical gRPC status code name."""
    reason: ClassVar[str] = "UNKNOWN"
    """Stable name of the error in capitals; unique per class."""


class InvalidArgumentError(PreceptorError):
    """Something the caller sent is wrong, whatever the state of the service."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_ARGUMENT"


class InvalidRunError(InvalidArgumentError):
    """A run's settings are out of range or name something unknown."""

    reason = "RUN_INVALID"


class InvalidSuperBatchError(InvalidArgumentError):
    """A super-batch has a wrong column, type, shape, row count, value, or `sub_batch_size`."""

    reason = "SUPER_BATCH_INVALID"


class UnsendableSuperBatchError(InvalidSuperBatchError, ValueError):
    """A super-batch that cannot even be sent: no columns, columns of unequal rows, a scalar, ids of another shape."""

    reason = "SUPER_BATCH_UNSENDABLE"


class InvalidWeightsError(InvalidArgumentError):
    """Weights are truncated, have a wrong checksum, or do not fit the run's architecture."""

    reason = "WEIGHTS_INVALID"


class InvalidMetricsError(InvalidArgumentError):
    """Reported metrics have a name, a value or a step that is out of range."""

    reason = "METRICS_INVALID"


class InvalidMessageError(InvalidArgumentError):
    """A message cannot be decoded, or broke the legal order or the credit of its stream."""

    reason = "MESSAGE_INVALID"


class NotFoundError(PreceptorError):
    """Something that was named does not exist."""

    code = "NOT_FOUND"
    reason = "NOT_FOUND"


class RunNotFoundError(NotFoundError):
    """No such run."""

    reason = "RUN_NOT_FOUND"


class WeightsNotFoundError(NotFoundError):
    """No weights with that digest or version."""

    reason = "WEIGHTS_NOT_FOUND"


class StepsNotKeptError(NotFoundError):
    """The ledger holds none of the steps: they were not answered yet, or dropped."""

    reason = "STEPS_NOT_KEPT"


class AlreadyExistsError(PreceptorError):
    """The name is taken by something else."""

    code = "ALREADY_EXISTS"
    reason = "ALREADY_EXISTS"


class RunExistsError(AlreadyExistsError):
    """The run exists with another spec."""

    reason = "RUN_EXISTS"


class ReferenceFrozenError(AlreadyExistsError):
    """The run already has another reference; a reference never changes under a run."""

    reason = "REFERENCE_FROZEN"


class StepExistsError(AlreadyExistsError):
    """The same (step, rank) was used for something else, e.g. a super-batch with other candidates."""

    reason = "STEP_EXISTS"


class FailedPreconditionError(PreceptorError):
    """The service is not in a state to do it; do something else first."""

    code = "FAILED_PRECONDITION"
    reason = "FAILED_PRECONDITION"


class WeightsMissingError(FailedPreconditionError):
    """Learner or reference weights were not pushed yet."""

    reason = "WEIGHTS_MISSING"


class LedgerOffError(FailedPreconditionError):
    """The run keeps no ledger."""

    reason = "LEDGER_OFF"


class BankOffError(FailedPreconditionError):
    """The run has no memory bank."""

    reason = "BANK_OFF"


class BankShortError(FailedPreconditionError):
    """The memory bank holds fewer examples than were to be sampled; nothing was taken from it."""

    reason = "BANK_SHORT"


class StepForgottenError(FailedPreconditionError):
    """The memory bank no longer knows whether it answered that step."""

    reason = "STEP_FORGOTTEN"


class StaleWeightsError(FailedPreconditionError):
    """Pushed weights belong to an older step than the committed ones."""

    reason = "WEIGHTS_STALE"


class CoTrainedError(FailedPreconditionError):
    """The service trains this run's learner copy itself; nothing is pushed."""

    reason = "RUN_CO_TRAINED"


class DivergedError(FailedPreconditionError):
    """The online model that the service trains came to a loss or weights that are not finite."""

    reason = "ONLINE_MODEL_DIVERGED"


class NonFiniteScoresError(FailedPreconditionError):
    """Fewer candidates have a finite score than were to be selected."""

    reason = "SCORES_NON_FINITE"


class AbortedError(PreceptorError):
    """The call lost a race; repeat it if it still makes sense."""

    code = "ABORTED"
    reason = "ABORTED"


class PushConflictError(AbortedError):
    """Another push was committed while this one was under way."""

    reason = "PUSH_CONFLICT"


class ResourceExhaustedError(PreceptorError):
    """A configured limit was reached."""

    code = "RESOURCE_EXHAUSTED"
    reason = "RESOURCE_EXHAUSTED"


class TooLargeError(ResourceExhaustedError):
    """One object is larger than the service accepts."""

    reason = "TOO_LARGE"


class OverloadedError(ResourceExhaustedError):
    """Too many streams, runs or bytes at once; try again later.

    Attributes:
        limit: inside the service the setting that was reached, e.g. `"gateway.max_streams"`; for a trainer None.
        retry_after_s: how long to wait before trying again; None where trying again alone does not help.
    """

    reason = "OVERLOADED"

    def __init__(self, message: str, limit: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after_s = retry_after_s


class DiskFullError(ResourceExhaustedError):
    """The weight store could not write."""

    reason = "DISK_FULL"


class DeadlineExceededError(PreceptorError):
    """It was not done in time."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class UnavailableError(PreceptorError):
    """The service cannot be reached or is going away; safe to repeat."""

    code = "UNAVAILABLE"
    reason = "UNAVAILABLE"


class GatewayDrainingError(UnavailableError):
    """The gateway finishes what it holds and goes away; connect again."""

    reason = "GATEWAY_DRAINING"


class ScorersUnavailableError(UnavailableError):
    """No scorer replica answered."""

    reason = "SCORERS_UNAVAILABLE"


class PermissionDeniedError(PreceptorError):
    """The caller may not do this."""

    code = "PERMISSION_DENIED"
    reason = "PERMISSION_DENIED"


class UnauthenticatedError(PreceptorError):
    """The caller showed no valid credentials."""

    code = "UNAUTHENTICATED"
    reason = "UNAUTHENTICATED"


class ClosedError(PreceptorError):
    """The client was closed while the call was under way, or before it."""

    code = "CANCELLED"
    reason = "CLOSED"


class UnimplementedError(PreceptorError):
    """The other side does not know this call; the versions do not fit."""

    code = "UNIMPLEMENTED"
    reason = "UNIMPLEMENTED"


class InternalError(PreceptorError):
    """The service failed; its log says why."""

    code = "INTERNAL"
    reason = "INTERNAL"


def _tree(root: type[PreceptorError]) -> list[type[PreceptorError]]:
    return [root, *(found for child in root.__subclasses__() for found in _tree(child))]


_BY_REASON = {error.reason: error for error in _tree(PreceptorError)}
_BY_CODE = {error.code: error for error in reversed(_tree(PreceptorError))}


def error_from(code: str, reason: str | None, message: str, retry_after_s: float | None = None) -> PreceptorError:
    """Returns the error of a status: by `reason` where it is known, else by canonical `code`.

    Args:
        code: canonical status code name, e.g. `"NOT_FOUND"`.
        reason: value of `REASON_METADATA_KEY`, or None where the peer sent none.
        message: what the peer said.
        retry_after_s: when the peer said that it makes sense to try again, in seconds from now.
    """
    by_code = _BY_CODE.get(code, PreceptorError)
    error = _BY_REASON.get(reason or "", by_code)
    found = (error if error.code == code else by_code)(message)
    if isinstance(found, OverloadedError):
        found.retry_after_s = retry_after_s
    return found
