"""How clients of JSON, gRPC and gRPC-Web read an error."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from tests.services import TEST_TIMEOUT_S


@dataclass(frozen=True)
class Failure:
    """An error as a client sees it, whatever it speaks."""

    code: str
    reason: str
    retry_after: int | None
    """Seconds."""
    message: str


def failure(answer: httpx.Response) -> Failure:
    """The error in a JSON answer."""
    assert answer.headers["content-type"] == "application/json", answer.text
    return _read(ParseDict(answer.json(), status_pb2.Status()))


def violations(answer: httpx.Response) -> dict[str, str]:
    """The descriptions of the rejected fields in a JSON answer, by field."""
    bad = error_details_pb2.BadRequest()
    details = ParseDict(answer.json(), status_pb2.Status()).details
    assert any(detail.Unpack(bad) for detail in details), answer.text
    return {violation.field: violation.description for violation in bad.field_violations}


def web_failure(answer: httpx.Response) -> Failure:
    """The error in a gRPC-Web answer: HTTP sees none, the status is in the headers."""
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/grpc-web+proto"
    assert answer.content == b""
    return _read_headers(answer.headers["grpc-status"], _unpadded(answer.headers["grpc-status-details-bin"]))


async def grpc_call(
    target: str, method: MethodDescriptor, request: Message | None = None, *, token: str = ""
) -> Message | Failure:
    """Call a method as a gRPC client does; of a stream, its first message."""
    request_class = message_factory.GetMessageClass(method.input_type)
    async with grpc.aio.insecure_channel(target) as channel:
        call: Any = (channel.unary_stream if method.server_streaming else channel.unary_unary)(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=request_class.SerializeToString,
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        answer: Message
        try:
            under_way = call(request or request_class(), metadata=metadata, timeout=TEST_TIMEOUT_S)
            answer = await (anext(aiter(under_way)) if method.server_streaming else under_way)
        except grpc.aio.AioRpcError as error:
            return failure_of(error)
        return answer


def failure_of(error: grpc.aio.AioRpcError) -> Failure:
    """The error as a gRPC client sees it."""
    details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    assert isinstance(details, bytes)
    found = _read_headers(str(error.code().value[0]), details)
    assert error.details() == found.message
    return found


def _read_headers(code: str, details: bytes) -> Failure:
    status = status_pb2.Status.FromString(details)
    assert str(status.code) == code
    return _read(status)


def _read(status: status_pb2.Status) -> Failure:
    info = error_details_pb2.ErrorInfo()
    [packed] = [detail for detail in status.details if detail.Unpack(info)]
    assert packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)
    assert info.domain == "commerce"
    retry = error_details_pb2.RetryInfo()
    told = any(detail.Unpack(retry) for detail in status.details)
    return Failure(
        code=code_pb2.Code.Name(status.code),
        reason=info.reason,
        retry_after=retry.retry_delay.seconds if told else None,
        message=status.message,
    )


def _unpadded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))
