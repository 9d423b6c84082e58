"""Errors ↔ `google.rpc.Status`, the one mapper of the mesh."""

from collections.abc import Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from mesh.errors import BRANCHES, Code, DeadlineExceeded, Internal, MeshError, Unavailable, Violation

Raised = TypeVar("Raised", bound=Exception)

DOMAIN = "commerce"
"""The `ErrorInfo.domain` of every reason."""

MAX_STATUS_BYTES = 5_000
"""The largest status with its details. It travels in headers, in base64, and clients accept 8 KiB of headers."""
MAX_MESSAGE_LENGTH = 250
"""The maximum number of characters of a message, which is also sent in a header of its own."""

_DETAILS = "grpc-status-details-bin"
_ENVELOPE_BYTES = 150
"""The type and the length of a detail, and a `RetryInfo`."""
_OF_TRANSPORT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}


def to_status(error: MeshError) -> status_pb2.Status:
    """The wire form of an error: an `ErrorInfo`, and a `BadRequest` and a `RetryInfo` if the error has such details.

    Violations that do not fit into `MAX_STATUS_BYTES` are left out.
    """
    status = status_pb2.Status(code=error.code, message=error.message[:MAX_MESSAGE_LENGTH])
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    status.details.append(_packed(info))
    if error.violations:
        status.details.append(_packed(_bad_request(error.violations, MAX_STATUS_BYTES - status.ByteSize())))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status


def _bad_request(violations: Sequence[Violation], max_bytes: int) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for violation in violations:
        bad.field_violations.add(field=violation.field, description=violation.description)
        if bad.ByteSize() > max_bytes - _ENVELOPE_BYTES:
            del bad.field_violations[-1]
            break
    return bad


def from_status(status: status_pb2.Status) -> MeshError:
    """The error that another service answered with: same branch, reason and values as over there."""
    try:
        branch = BRANCHES[Code(status.code)]
    except ValueError:
        branch = Internal
    info, violations, retry_after = error_details_pb2.ErrorInfo(reason=branch.reason), [], None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            violations = [Violation(v.field, v.description) for v in bad.field_violations]
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after = retry.retry_delay.ToMilliseconds() / 1000
    error = branch.__new__(branch)
    MeshError.__init__(
        error,
        status.message,
        reason=info.reason,
        metadata=dict(info.metadata),
        violations=violations,
        retry_after=retry_after,
    )
    return error


def from_rpc_error(failure: grpc.aio.AioRpcError, service: str) -> MeshError:
    """The error of a failed call to `service`: the one that the service named, or else the one of the transport."""
    if (named := _details(failure)) is not None:
        return from_status(status_pb2.Status.FromString(named))
    match failure.code():
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"the {service} service did not answer in time")
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return Unavailable(f"the {service} service cannot be reached", metadata={"service": service})
        case code:
            # For the log only: the chain replaces the message of an Internal.
            return Internal(f"the {service} service answered {code.name} without a status: {failure.details()}")


def is_of_transport(failure: grpc.aio.AioRpcError) -> bool:
    """Whether a call failed in transport: the service did not answer, or not in time."""
    return failure.code() in _OF_TRANSPORT and _details(failure) is None


def _details(failure: grpc.aio.AioRpcError) -> bytes | None:
    """The status that the service named, serialized; none if the transport failed."""
    for key, value in failure.trailing_metadata():
        if key == _DETAILS and isinstance(value, bytes):
            return value
    return None


def fault(trace_id: str) -> Internal:
    """The error that a caller gets for a fault of the mesh: a trace id and no internal details."""
    return Internal("an internal error; quote the trace id", metadata={"traceId": trace_id})


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: MeshError) -> None:
    """End a call with this error. Always raises."""
    status = to_status(error)
    await context.abort(grpc_code(status), status.message, trailers(status))


def without_frames(error: Raised) -> Raised:
    """The same error without the frames that it passed through.

    gRPC keeps the error of an aborted call with the call, and the frames refer to both: a cycle that would keep the
    request in memory until the garbage collector runs.
    """
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def grpc_code(status: status_pb2.Status) -> grpc.StatusCode:
    """The transport's code of a status."""
    return _GRPC_CODES[status.code]


def trailers(status: status_pb2.Status) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries a status with its details."""
    return ((_DETAILS, status.SerializeToString()),)


def _packed(
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
