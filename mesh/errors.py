"""The errors of the mesh, as one small tree.

MeshError
├── InvalidArgument      the request is invalid in any state; `violations` names the fields
├── Unauthenticated      the caller has no valid credentials
├── PermissionDenied     the caller has the wrong role
├── NotFound             the resource does not exist, or belongs to another customer
├── AlreadyExists        a unique name, or the idempotency key, is in use
├── Aborted              the resource has changed: read it again and retry
├── FailedPrecondition   the state of the resource does not allow the request
├── ResourceExhausted    too much load; retry after `retry_after`
├── Unavailable          a dependency does not answer; retry after `retry_after`
│   ├── StaleWrite       the version of a row has changed; nothing was written
│   └── StatementTimeout the database took too long; a smaller batch may succeed
├── DeadlineExceeded     the caller's deadline has passed
├── Unimplemented        the method is in the contract but not implemented
└── Internal             a fault of the service; the caller gets only a trace id

The branches are gRPC's canonical codes. The `reason` is the precise cause: upper snake case, stable, declared in a
contract's `*ErrorReason` enum. A service adds reasons with subclasses in its `domain.py`. This module imports only the
standard library, so that a domain may use it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """The canonical status codes of gRPC that the mesh uses."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class Violation:
    """A rejected field: its path in the request (`items[0].quantity`) and the rule that it violates."""

    field: str
    description: str


class MeshError(Exception):
    """An error with a name.

    `message` is for developers; programs use `code`, `reason` and `metadata`. `retry_after` is in seconds.
    """

    code: ClassVar[Code] = Code.INTERNAL
    reason: str = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after = retry_after


class InvalidArgument(MeshError):
    """The request is invalid, regardless of the state of the system."""

    code = Code.INVALID_ARGUMENT
    reason = "VALIDATION_FAILED"


class Unauthenticated(MeshError):
    """The caller has no valid credentials."""

    code = Code.UNAUTHENTICATED
    reason = "TOKEN_INVALID"


class PermissionDenied(MeshError):
    """The caller is authenticated, but its role does not allow the request."""

    code = Code.PERMISSION_DENIED
    reason = "ROLE_REQUIRED"


class NotFound(MeshError):
    """The resource does not exist or belongs to another customer. Both look the same to the caller."""

    code = Code.NOT_FOUND


class AlreadyExists(MeshError):
    """A unique value is already in use."""

    code = Code.ALREADY_EXISTS


class Aborted(MeshError):
    """The caller's version of the resource is out of date."""

    code = Code.ABORTED
    reason = "ETAG_MISMATCH"


class FailedPrecondition(MeshError):
    """The request is valid, but the state of the resource does not allow it."""

    code = Code.FAILED_PRECONDITION


class ResourceExhausted(MeshError):
    """The service does not accept more work at the moment."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"


class Unavailable(MeshError):
    """A dependency does not answer. The effect may have taken place: retry with the same idempotency key."""

    code = Code.UNAVAILABLE
    reason = "DEPENDENCY_UNAVAILABLE"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after: float | None = 1.0,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata, violations=violations, retry_after=retry_after)


class StaleWrite(Unavailable):
    """An optimistic write failed because the version of the row has changed. Nothing was written; retry everything."""

    def __init__(self) -> None:
        super().__init__("another change came first", retry_after=0.0)


class StatementTimeout(Unavailable):
    """The database did not finish a statement in time. It is overloaded, or the statement is too large."""

    def __init__(self) -> None:
        super().__init__("the database takes too long")


class DeadlineExceeded(MeshError):
    """The caller's deadline passed before the reply was ready."""

    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Unimplemented(MeshError):
    """The contract has this method, but this version of the service does not implement it."""

    code = Code.UNIMPLEMENTED
    reason = "METHOD_UNIMPLEMENTED"


class Internal(MeshError):
    """A fault of the service."""


BRANCHES: Mapping[Code, type[MeshError]] = {
    branch.code: branch
    for branch in (
        InvalidArgument,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        AlreadyExists,
        Aborted,
        FailedPrecondition,
        ResourceExhausted,
        Unavailable,
        DeadlineExceeded,
        Unimplemented,
        Internal,
    )
}
"""The branch of each code, for errors that another service returns."""

TRANSIENT = (Unavailable, DeadlineExceeded, ResourceExhausted)
"""Errors that are not caused by the request: the same request may succeed later."""
