"""Everything that can go wrong, as one small tree.

MeshError
├── InvalidArgument      the request itself is wrong; `violations` names each field
├── Unauthenticated      nobody, or nobody we can verify
├── PermissionDenied     somebody, but not with this role
├── NotFound             no such thing, or not yours
├── AlreadyExists        the name, or the idempotency key, is taken
├── Aborted              lost a race: read again and retry
├── FailedPrecondition   right request, wrong state
├── ResourceExhausted    too much at once; `retry_after` says when
├── Unavailable          a part is down; `retry_after` says when
│   ├── StaleWrite        another transaction was quicker: nothing was done
│   └── StatementTimeout the database took too long: less at a time may succeed
├── DeadlineExceeded     the caller's time ran out
├── Unimplemented        in the contract, not built yet
└── Internal             a fault of ours; the caller learns a trace id only

The branches are gRPC's canonical codes. A cause is a `reason`: upper snake case, stable, declared in a contract's
`*ErrorReason` enum. A service adds causes by subclassing a branch in its `domain.py` and setting `reason`.
This module imports the standard library only, so that a domain may use it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """The canonical status codes of gRPC that the mesh answers with."""

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
    """One rejected field: its path in the request (`items[0].quantity`) and what is wrong with it."""

    field: str
    description: str


class MeshError(Exception):
    """An error with a name.

    `message` is for the developer who reads the reply, never parsed; `metadata` holds the values a program needs;
    `retry_after` is in seconds.
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
    """The request itself is wrong, whatever the state of the system."""

    code = Code.INVALID_ARGUMENT
    reason = "VALIDATION_FAILED"


class Unauthenticated(MeshError):
    """The caller is nobody that can be verified."""

    code = Code.UNAUTHENTICATED
    reason = "TOKEN_INVALID"


class PermissionDenied(MeshError):
    """The caller is known, and may not do this to anything."""

    code = Code.PERMISSION_DENIED
    reason = "ROLE_REQUIRED"


class NotFound(MeshError):
    """There is no such thing, or it is not the caller's: the two read the same."""

    code = Code.NOT_FOUND


class AlreadyExists(MeshError):
    """What was to be unique is taken."""

    code = Code.ALREADY_EXISTS


class Aborted(MeshError):
    """The caller acted on an older version of the thing."""

    code = Code.ABORTED
    reason = "ETAG_MISMATCH"


class FailedPrecondition(MeshError):
    """The request is right, the state does not allow it."""

    code = Code.FAILED_PRECONDITION


class ResourceExhausted(MeshError):
    """More work than the service takes at once."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"


class Unavailable(MeshError):
    """A part that is needed does not answer. Whether the effect took place may be unknown: retry with the same key."""

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
    """Another transaction changed what this one took for granted. Nothing was done; all of it may be tried again."""

    def __init__(self) -> None:
        super().__init__("another change came first", retry_after=0.0)


class StatementTimeout(Unavailable):
    """The database did not finish a statement in time. It is overloaded, or the work is too much for one statement."""

    def __init__(self) -> None:
        super().__init__("the database takes too long")


class DeadlineExceeded(MeshError):
    """The caller's deadline passed before the answer was there."""

    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Unimplemented(MeshError):
    """The contract has this method; this version of the service does not."""

    code = Code.UNIMPLEMENTED
    reason = "METHOD_UNIMPLEMENTED"


class Internal(MeshError):
    """A fault of ours."""


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
"""The branch of each code, for errors that come back over the wire."""

TRANSIENT = (Unavailable, DeadlineExceeded, ResourceExhausted)
"""What says nothing of the request itself: the same one may succeed a little later."""
